#!/bin/sh
# Restores any video that FFmpeg reads: examples/deploy/ffmpeg_pipe.sh IN OUT
# Frames are piped as raw rgb24; sound is copied from IN. Run it in the project's folder.
set -eu
of_video() { ffprobe -v error -select_streams v:0 -show_entries "stream=$1" -of csv=p=0:s=x "$2"; }
size=$(of_video width,height "$1")
rate=$(of_video r_frame_rate "$1")
ffmpeg -v error -i "$1" -map 0:v:0 -fps_mode cfr -r "$rate" -f rawvideo -pix_fmt rgb24 - |
  "${PYTHON:-python}" deblur.py - - --size="$size" ${DEBLUR_OPTIONS:-} |
  ffmpeg -v error -f rawvideo -pix_fmt rgb24 -s "$size" -r "$rate" -i - -i "$1" \
    -map 0:v -map '1:a?' -c:a copy -pix_fmt yuv420p -y "$2"
