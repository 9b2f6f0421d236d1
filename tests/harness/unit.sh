#!/bin/sh
# A systemd of its own, in namespaces of its own, that runs one unit of systemd/ as it is. Nothing that
# it writes is seen outside, but for the unit's output. The network is the machine's.
#
# Arguments: the control group that all of it is in (of cgroup v2, to be removed by whoever calls),
# the unit's file, the program that it starts, the file for its output, the flags of a controller, the
# configuration of an agent, further lines of the unit's section Service.
set -eu
if [ "${LIMPET_INSIDE:-}" = "" ]; then
    mkdir -p "$1"
    echo $$ >"$1/cgroup.procs"
    LIMPET_INSIDE=1 exec unshare -f -p -m -u -i -C --mount-proc --kill-child sh "$0" "$@"
fi
shift
unit=$(basename "$1")
mount --make-rprivate /
mount -t tmpfs none /run
mount -t tmpfs none /var/lib
mkdir -p /run/etc /run/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work none /etc
echo 'limpet:x:990:990::/:/usr/sbin/nologin' >>/etc/passwd
echo 'limpet:x:990:' >>/etc/group
mkdir -p /etc/limpet
cp "$5" /etc/limpet/agent.toml
mkdir -p /run/bin "/run/systemd/system/$unit.d"
cp "$2" /run/bin/
sed 's|/usr/bin/|/run/bin/|' "$1" >"/run/systemd/system/$unit"
cat >"/run/systemd/system/$unit.d/test.conf" <<END
[Unit]
DefaultDependencies=no
Wants=
After=
[Service]
EnvironmentFile=
Environment="LIMPET_UP_FLAGS=$4"
StandardOutput=append:$3
StandardError=append:$3
$6
END
cat >/run/systemd/system/limpet-test.target <<END
[Unit]
DefaultDependencies=no
Wants=$unit
END
# PrivateTmp= leaves folders behind where its systemd is killed. The output stays where it is read.
lab=$(dirname "$3")
mkdir /run/lab
mount --bind "$lab" /run/lab
mount -t tmpfs none /tmp
mount -t tmpfs none /var/tmp
mkdir -p "$lab"
mount --bind /run/lab "$lab"
umount -R /sys/fs/cgroup || true
mount -t cgroup2 none /sys/fs/cgroup
export container=limpet-test
exec /lib/systemd/systemd --system --unit=limpet-test.target --show-status=no --log-target=null
