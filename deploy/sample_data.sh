#!/bin/sh
# Writes made-up service reports of one kind of device to standard output, the same ones at every call: sample data for
# the demonstration. Usage: sample_data.sh kiosk|robot|vehicle [REPORTS]
set -eu
kind=${1:?usage: sample_data.sh kiosk|robot|vehicle [REPORTS]}
case "$kind" in
  kiosk) things='printer:card reader:touch screen:cash drawer:receipt roll' places='station:library:airport:museum' ;;
  robot) things='left gripper:wheel motor:laser scanner:battery pack:elbow joint' places='warehouse:greenhouse:dock:assembly line' ;;
  vehicle) things='brake pad:coolant pump:door sensor:alternator:tyre' places='depot:motorway:harbour:night route' ;;
  *) echo "sample_data.sh: unknown kind \"$kind\" (kiosk, robot or vehicle)" >&2; exit 2 ;;
esac
awk -v kind="$kind" -v things="$things" -v places="$places" -v reports="${2:-300}" '
function pick(list, n) { return list[int(rand() * n) + 1] }
BEGIN {
  srand(length(kind) * 7919 + index("krv", substr(kind, 1, 1)))
  nt = split(things, thing, ":"); np = split(places, place, ":")
  nf = split("stopped answering:ran too warm:made a grinding noise:lost its calibration:worked without a fault", fault, ":")
  na = split("was cleaned:was replaced:was restarted:was left as it is:is to be watched", act, ":")
  for (i = 1; i <= reports; i++) {
    t = pick(thing, nt)
    printf "Report %d of the %s at the %s. The %s %s after %d hours of service. ", i, kind, pick(place, np), t, pick(fault, nf), 10 + int(rand() * 900)
    printf "The %s %s, and the next inspection is due in %d days.\n\n", t, pick(act, na), 5 + int(rand() * 60)
  }
}'
