#!/bin/bash
# The five-minute tour of README.md on this machine: a registry, a controller and three devices.
# Every command that is shown is the command that runs. Leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(realpath "${BIN:-target/debug}")
work=$(mktemp -d /tmp/limpet-demo-XXXXXX)
name=$(basename "$work")
declare -A pids

bold="" plain=""
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\033[1m' plain=$'\033[0m'; fi

say() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }

# Shows a command and runs it.
show() {
    printf '\n$ %s\n' "$1"
    eval "$1" || {
        echo "demo: failed at: $1" >&2
        tail -n 20 "$work"/*.log >&2
        exit 1
    }
}

# Waits until a command succeeds.
until_ok() {
    for _ in $(seq 200); do
        if eval "$1" >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    echo "demo: failed: waited 20 s for: $1" >&2
    tail -n 20 "$work"/*.log >&2
    exit 1
}

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 9000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo $port; return; }
    done
}

# Everything of ours carries the name of our folder; it is ended by its id.
clean() {
    local status=$?
    set +e
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null; done
    for group in /sys/fs/cgroup/*/"$name"-* /sys/fs/cgroup/"$name"-*; do
        [ -d "$group" ] || continue
        find "$group" -name cgroup.procs -exec cat {} + | xargs -r kill -9 2>/dev/null
    done
    for cmdline in $(grep -ls "$work/" /proc/[0-9]*/cmdline); do
        pid=${cmdline#/proc/}
        kill -9 "${pid%/cmdline}" 2>/dev/null
    done
    sleep 0.2
    for group in /sys/fs/cgroup/*/"$name"-* /sys/fs/cgroup/"$name"-*; do
        [ -d "$group" ] && find "$group" -depth -type d -exec rmdir {} + 2>/dev/null
    done
    rm -rf "$work"
    exit $status
}
trap clean EXIT
trap 'exit 130' INT TERM

start() {
    local what=$1
    shift
    "$@" >>"$work/$what.log" 2>&1 &
    pids[$what]=$!
    disown
}

api=127.0.0.1:$(free_port) mqtt_port=$(free_port) registry=127.0.0.1:$(free_port)
export WEB=$(free_port) PATH=$bin:$PATH XDG_CONFIG_HOME=$work/config
unset LIMPET_SERVER LIMPET_CONTEXT LIMPET_TOKEN

controller() { start controller limpet up --data-dir "$work/controller" --listen "$api" --mqtt-listen "127.0.0.1:$mqtt_port"; }

say "A registry with one small image, built from Debian's busybox"
cat >"$work/registry.yml" <<YML
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: "$registry"}
YML
start registry docker-registry serve "$work/registry.yml"
until_ok "curl -fs http://$registry/v2/"
scripts/image.sh "$registry" library/web:1

say "A controller. It makes its own certificates, and a string for its first admin"
controller
until_ok "grep -q 'limpet run' $work/controller.log"
cat "$work/controller.log"
show "limpet login --file $work/controller/login"

say "One line lets devices join, here three. Each makes its own key, and gets a certificate"
show 'export JOIN=$(limpet token create --join --uses 3 --ttl 10m)'
for device in berlin-1 berlin-2 oslo-1; do
    printf '[labels]\nsite = "%s"\n[registries.mirrors]\n"docker.io" = ["%s"]\n' "${device%-*}" "$registry" >"$work/$device.toml"
    show "limpet-agent join \$JOIN --device-id $device --data-dir $work/$device"
    start "$device" limpet-agent run --config "$work/$device.toml" --data-dir "$work/$device" \
        --run-dir "$work/$device.run" --cgroup-parent "/$name-$device"
done
until_ok '[ "$(limpet get devices | grep -c online)" = 3 ]'
show "limpet get devices"

say "Run a web server. Its image comes from the registry; the command waits until it runs"
show 'limpet run web --image=web:1 --env PORT=$WEB'
show "limpet get workloads"
show 'curl -s http://127.0.0.1:$WEB/'

say "Three of them, one on each device (each serves on the port of its number)"
show "limpet scale web --replicas=3"
show 'curl -s http://127.0.0.1:$((WEB + 2))/'

say "Kill one: its device replaces it by itself"
victim=$(limpet get workloads web -o json | grep -m1 '"pid"' | tr -dc 0-9)
show "kill -9 $victim"
until_ok 'limpet get workloads web -o json | grep -q "\"restarts\": 1"'
until_ok '[ "$(limpet get workloads web | grep -c running)" = 3 ]'
show "limpet get workloads web"

say "Any MQTT client can deploy: here mosquitto's, with a manifest of three lines"
printf 'image: web:1\neverywhere: true\ncommand: [sh, -c, "while :; do echo tick; sleep 1; done"]\n' >"$work/ticker.yaml"
show "cat $work/ticker.yaml"
show "limpet token create --publisher ci --out $work/ci"
mqtt="-h 127.0.0.1 -p $mqtt_port --cafile $work/ci/ca.pem --cert $work/ci/cert.pem --key $work/ci/key.pem"
show "mosquitto_pub $mqtt -q 1 -t limpet/v1/deploy/ticker -f $work/ticker.yaml"
show "mosquitto_sub $mqtt -t limpet/v1/deploy/ticker/result -C 1 -W 10"
until_ok 'limpet get deployments | grep -q "ticker.*3/3.*settled"'
show "limpet get deployments"
show "limpet logs ticker --device oslo-1 --tail 2"

say "The controller dies; the devices do not care"
show "kill -9 ${pids[controller]}"
show 'curl -s http://127.0.0.1:$WEB/'
say "A person beside a device can ask it, with no controller in reach"
show "limpet-agent status --run-dir $work/berlin-1.run"
controller
until_ok '[ "$(limpet get devices | grep -c online)" = 3 ]'
say "Started again, it knows everything that it knew"
show "limpet get deployments"
show "limpet get events web"

say "Who did what, and from where"
show "limpet get audit"

if [ -n "${KEEP:-}" ]; then
    say "It stays up until Ctrl-C. In another terminal:"
    echo "  export PATH=$bin:\$PATH XDG_CONFIG_HOME=$XDG_CONFIG_HOME"
    echo "  limpet get workloads -o wide          limpet logs ticker -f"
    echo "  limpet describe deployment web        limpet scale web --replicas=5"
    echo "  mosquitto_pub $mqtt -t limpet/v1/deploy/again -m 'image: web:1'"
    while :; do sleep 1; done
fi

say "Delete everything"
show "limpet delete web ticker"
show "limpet get workloads"
echo
echo "demo: ok"
