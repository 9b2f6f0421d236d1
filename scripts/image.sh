#!/bin/sh
# image.sh REGISTRY REPOSITORY:TAG: builds a small real image, a web server out of Debian's
# busybox-static, with umoci, and pushes it with skopeo.
set -eu
registry=$1
name=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work/root/bin" "$work/root/etc" "$work/root/www"
cp /bin/busybox "$work/root/bin/busybox"
for program in sh httpd sleep echo cat ls ps kill hostname id env; do
    ln -s busybox "$work/root/bin/$program"
done
echo 'root:x:0:0:root:/:/bin/sh' >"$work/root/etc/passwd"
# Workloads share their device's network: number N of them serves on PORT + N.
cat >"$work/root/bin/serve" <<'SERVE'
#!/bin/sh
port=$((${PORT:-8080} + ${HOSTNAME##*-}))
echo "Hello from $HOSTNAME." >/www/index.html
echo "serving on port $port"
exec httpd -f -h /www -p "127.0.0.1:$port"
SERVE
chmod 755 "$work/root/bin/serve"

umoci init --layout "$work/image"
umoci new --image "$work/image:it"
umoci insert --image "$work/image:it" "$work/root" /
umoci config --image "$work/image:it" --config.env PATH=/bin --config.entrypoint serve
skopeo copy --quiet --dest-tls-verify=false "oci:$work/image:it" "docker://$registry/$name"
