#!/usr/bin/env bash
# The main job on a fresh machine: environment, embedded services, a small hunt on real engines, its candidates and report.
# Run it again and it re-uses everything that is there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
campaign=$root/examples/quickstart

environment pseudos

say "Services in $HYDROFLOW_HOME"
hydroflow services up
say "Campaign $campaign"
hydroflow run "$campaign"
echo
hydroflow candidates "$campaign"
echo
hydroflow report "$campaign" -o "$root/report-quickstart.html"
say "Done. Services keep running: \`$venv/bin/hydroflow services down\` stops them (HYDROFLOW_HOME=$HYDROFLOW_HOME)."
