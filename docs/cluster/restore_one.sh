#!/bin/bash
# Restores one of many videos: restore_one.sh VIDEOS OUT INDEX [OPTION ...]
# VIDEOS is a text file with a path on each line, or a folder; INDEX begins at 0. All of these are on
# a disk that all machines see. The result appears in OUT when it is complete, and is skipped if it
# is there already. Programs are compiled once for all, in OUT/.compiled.
# Exit code 2 means a bad video; any other but 0 a bad machine, and the index can be tried again.
set -euo pipefail

videos=$1 out=$2 index=$3
if [[ -d "$videos" ]]; then
  mapfile -t list < <(find "$videos" -maxdepth 1 -type f ! -name '.*' | LC_ALL=C sort)
else
  mapfile -t list < "$videos"
fi
if (( index >= ${#list[@]} )); then
  echo "there are only ${#list[@]} videos in $videos: nothing to do for index $index"
  exit 0
fi
mkdir -p "$out"
export JAXDEBLUR_CACHE="${JAXDEBLUR_CACHE:-$out/.compiled}"
exec "${PYTHON:-python}" deblur.py "${list[index]}" --out-dir="$out" --skip-done "${@:4}"
