#!/bin/sh
# deb.sh limpet-agent|limpet BINARY ARCH OUT: a Debian package of a program that was built before, of
# what systemd needs of it, and of the words that shells complete. ARCH is Debian's (amd64, arm64,
# armhf). Prints the path of the package. The same inputs give the same bytes: times are those of
# SOURCE_DATE_EPOCH, by default of the last commit.
set -eu
[ $# = 4 ] || {
    echo "deb.sh: limpet-agent|limpet BINARY ARCH OUT" >&2
    exit 2
}
package=$1 binary=$(realpath "$2") arch=$3
mkdir -p "$4"
out=$(realpath "$4")
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

case $package in
limpet-agent)
    unit=limpet-agent files=limpet.conf data="/var/lib/limpet /run/limpet /etc/limpet/agent.toml /etc/limpet/join"
    short="container orchestrator for edge devices: agent"
    long="Runs the containers that a Limpet controller publishes for this device, and
 goes on with them while there is no network." ;;
limpet)
    unit=limpet-controller files=limpet-controller.conf data="/var/lib/limpet-controller /etc/limpet/controller.env"
    short="container orchestrator for edge devices: controller and command line"
    long="Broker, store and API of a fleet of devices in one process, and the command
 line that an operator speaks to it with." ;;
*)
    echo "deb.sh: $package: limpet-agent or limpet" >&2
    exit 2 ;;
esac

put() { # MODE FROM TO
    install -D -m "$1" "$2" "$root/$3"
}
put 755 "$binary" "usr/bin/$package"
put 644 "systemd/$unit.service" "usr/lib/systemd/system/$unit.service"
put 644 "systemd/sysusers.d/$files" "usr/lib/sysusers.d/$files"
put 644 "systemd/tmpfiles.d/$files" "usr/lib/tmpfiles.d/$files"
doc=usr/share/doc/$package
put 644 scripts/deb/copyright "$doc/copyright"
mkdir -p "$root/DEBIAN"
date=$(date -u -R -d "@$SOURCE_DATE_EPOCH")
printf '%s (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md of the sources.\n\n -- Limpet <limpet@users.noreply.github.com>  %s\n' \
    "$package" "$version" "$date" | gzip -9n >"$root/$doc/changelog.gz"
if [ "$package" = limpet ]; then
    put 644 systemd/low-ports.conf "$doc/examples/low-ports.conf"
    # Only the program itself knows its words: LIMPET is one for this machine, where this one is not.
    limpet=${LIMPET:-$binary}
    if "$limpet" --version >/dev/null 2>&1; then
        for shell in bash:bash-completion/completions/limpet zsh:zsh/vendor-completions/_limpet \
            fish:fish/vendor_completions.d/limpet.fish; do
            mkdir -p "$root/usr/share/$(dirname "${shell#*:}")"
            "$limpet" completion "${shell%%:*}" >"$root/usr/share/${shell#*:}"
        done
    fi
else
    put 644 scripts/deb/agent.toml "$doc/examples/agent.toml"
fi
mkdir -p "$root/usr/share/lintian/overrides"
printf '# One program for every distribution.\n%s: statically-linked-binary [usr/bin/%s]\n' "$package" "$package" \
    >"$root/usr/share/lintian/overrides/$package"
for script in postinst prerm postrm; do
    sed "s|@UNIT@|$unit|g; s|@FILES@|$files|g; s|@PROGRAM@|$package|g; s|@DATA@|$data|g" "scripts/deb/$script" >"$root/DEBIAN/$script"
    chmod 755 "$root/DEBIAN/$script"
done
find "$root" -type d -exec chmod 755 {} +
cat >"$root/DEBIAN/control" <<END
Package: $package
Version: $version
Architecture: $arch
Maintainer: Limpet <limpet@users.noreply.github.com>
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f 1)
Depends: systemd | systemd-standalone-sysusers, systemd | systemd-standalone-tmpfiles
Recommends: ca-certificates
Section: admin
Priority: optional
Homepage: https://github.com/limpet/limpet
Description: $short
 $long
END
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
dpkg-deb --root-owner-group -Z"${DEB_COMPRESSION:-xz}" --build "$root" "$out/${package}_${version}_$arch.deb" >/dev/null
echo "$out/${package}_${version}_$arch.deb"
