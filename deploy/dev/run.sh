#!/usr/bin/env bash
# Starts `headwater` (an origin and an edge in one process) with a demo stream, says where to look, and stops
# everything on Ctrl-C. Other ports: RTMP_PORT, HTTP_PORT, MEDIA_PORT, ADMIN_PORT. Without the demo: DEMO=no.
set -euo pipefail
cd "$(dirname "$0")/../.."

rtmp_port=${RTMP_PORT:-1935}
http_port=${HTTP_PORT:-8080}
media_port=${MEDIA_PORT:-8700}
admin_port=${ADMIN_PORT:-9600}
target=${CARGO_TARGET_DIR:-target}
log=.run/headwater.log
demo_log=.run/demo.log
mkdir -p .run

if [[ -t 1 ]]; then bold=$'\033[1m' dim=$'\033[2m' cyan=$'\033[36m' red=$'\033[31m' off=$'\033[0m'
else bold='' dim='' cyan='' red='' off=''; fi
step() { printf '%s==>%s %s\n' "$bold" "$off" "$*"; }
fail() { printf '%serror:%s %s\n' "$red" "$off" "$*" >&2; exit 1; }

server='' demo=''
stop() {
    trap - EXIT INT TERM
    [[ -n $demo ]] && kill "$demo" 2>/dev/null
    if [[ -n $server ]] && kill -TERM "$server" 2>/dev/null; then
        for _ in {1..50}; do kill -0 "$server" 2>/dev/null || break; sleep 0.1; done
        kill -KILL "$server" 2>/dev/null
    fi
    wait 2>/dev/null
}
trap 'stop' EXIT
trap 'echo; step "stopping"; stop; exit 0' INT TERM

# A second copy would only fail later and less clearly.
for port in "$rtmp_port" "$http_port" "$admin_port"; do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
        fail "port $port is taken; stop what listens there or set RTMP_PORT, HTTP_PORT, ADMIN_PORT"
    fi
done

step "starting headwater (log: $log)"
# A group of its own, so that Ctrl-C reaches it only through us and it can finish in order.
set -m
"$target/debug/headwater" standalone \
    --rtmp "0.0.0.0:$rtmp_port" --http "0.0.0.0:$http_port" \
    --media "0.0.0.0:$media_port" --admin "127.0.0.1:$admin_port" >"$log" 2>&1 &
server=$!
start_demo() { RTMP_PORT=$rtmp_port deploy/dev/demo.sh >"$demo_log" 2>&1 & demo=$!; }
set +m

alive() { kill -0 "$server" 2>/dev/null || { tail -n 20 "$log" >&2; fail "headwater ended; its last lines stand above"; }; }
for try in {1..150}; do
    alive
    curl -fsS -o /dev/null "http://127.0.0.1:$admin_port/readyz" 2>/dev/null && break
    ((try == 150)) && { tail -n 20 "$log" >&2; fail "headwater isn't ready after 15 s"; }
    sleep 0.1
done

if [[ ${DEMO:-yes} != no ]]; then
    step "pushing the demo stream by ffmpeg (log: $demo_log)"
    set -m; start_demo; set +m
    for try in {1..150}; do
        alive
        kill -0 "$demo" 2>/dev/null || { tail -n 20 "$demo_log" >&2; fail "the demo's ffmpeg ended"; }
        curl -fsS "http://127.0.0.1:$http_port/api/v1/streams" 2>/dev/null | grep -q '"live/demo"' && break
        ((try == 150)) && { tail -n 20 "$log" "$demo_log" >&2; fail "the demo stream isn't live after 15 s"; }
        sleep 0.1
    done
fi

host=$(hostname -I 2>/dev/null | awk '{ print $1 }')
rtmp_host="rtmp://${host:-127.0.0.1}"
[[ $rtmp_port != 1935 ]] && rtmp_host+=":$rtmp_port"
cat <<TEXT

  ${bold}Headwater is live.${off}

  Watch           ${cyan}http://localhost:$http_port/play/live/demo${off}
  What is live    ${cyan}http://localhost:$http_port/${off}$([[ -n $host ]] && printf '\n  Other devices   %shttp://%s:%s/%s' "$cyan" "$host" "$http_port" "$off")
  For operators   http://localhost:$admin_port/admin
  Metrics         http://localhost:$admin_port/metrics

  ${bold}Push your own${off}
  ffmpeg -re -i FILE -c:v libx264 -preset veryfast -tune zerolatency -bf 0 -g 60 -pix_fmt yuv420p \\
         -c:a aac -f flv $rtmp_host/live/NAME
  OBS     Settings > Stream > Service: Custom, Server: $rtmp_host/live, Stream key: NAME
          Settings > Output > Advanced > x264: Keyframe interval 2 s, Tune zerolatency, x264 options bframes=0
  then watch http://localhost:$http_port/play/live/NAME

  ${dim}Ctrl-C stops everything.${off}

TEXT

while true; do
    alive
    if [[ -n $demo ]] && ! kill -0 "$demo" 2>/dev/null; then
        step "the demo's ffmpeg ended ($(tail -n 1 "$demo_log")); starting it again"
        sleep 2
        set -m; start_demo; set +m
    fi
    sleep 1
done
