#!/usr/bin/env bash
# Pushes a demo stream by ffmpeg until it is stopped: moving colour bars with a clock, a soft tone, and once a second
# a flash with a pip, by which eye and ear judge the lip sync.
set -euo pipefail

url=${RTMP_URL:-rtmp://127.0.0.1:${RTMP_PORT:-1935}/live/demo}

video="smptehdbars=size=1280x720:rate=30"
# A bar that runs through once in four seconds, and a flash of two frames on the full second.
filter="color=white:size=160x12:rate=30[bar];[in][bar]overlay=x='mod(t,4)/4*(W+w)-w':y=H*0.88:shortest=1"
filter+=",drawbox=x=iw-112:y=48:w=64:h=64:color=white:t=fill:enable='lt(mod(t,1),0.066)'"
font=
for candidate in /usr/share/fonts/truetype/dejavu/DejaVuSansMono-Bold.ttf \
    /usr/share/fonts/truetype/liberation/LiberationMono-Bold.ttf; do
    [[ -z $font && -r $candidate ]] && font=$candidate
done
[[ -z $font ]] && command -v fc-match >/dev/null && font=$(fc-match -f '%{file}' monospace:bold)
filters=$(ffmpeg -hide_banner -filters 2>/dev/null)
if [[ $filters == *" drawtext "* && -r $font ]]; then
    style="fontfile=$font:fontcolor=white:box=1:boxcolor=black@0.75"
    filter+=",drawtext=$style:fontsize=88:boxborderw=28:x=(w-tw)/2:y=h*0.3:text='%{localtime\:%T}'"
    filter+=",drawtext=$style:fontsize=30:boxborderw=14:x=(w-tw)/2:y=h*0.5:text='frame %{frame_num}  %{pts\:hms}'"
fi
tone="0.04*sin(2*PI*440*t)+0.3*sin(2*PI*1000*t)*lt(mod(t\,1)\,0.066)"

exec ffmpeg -hide_banner -nostdin -loglevel "${FFMPEG_LOGLEVEL:-error}" -re \
    -f lavfi -i "$video" \
    -f lavfi -i "aevalsrc=$tone:sample_rate=48000:channel_layout=mono" \
    -vf "$filter,format=yuv420p" \
    -c:v libx264 -preset veryfast -tune zerolatency -profile:v main -bf 0 \
    -g 60 -keyint_min 60 -sc_threshold 0 -b:v 2500k -maxrate 2500k -bufsize 2500k \
    -c:a aac -ac 2 -ar 48000 -b:a 128k \
    -f flv "$url"
