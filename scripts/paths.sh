# Sourced by the scripts here: where things live outside the clone, and how the scripts speak.
#   ASSAY_CACHE  downloads, Python environment, dependencies, demo models (default: ~/.cache/assay)
ASSAY_CACHE=${ASSAY_CACHE:-${HOME:?HOME is not set; set ASSAY_CACHE}/.cache/assay}
ASSAY_DEPS=${ASSAY_DEPS:-$ASSAY_CACHE/deps}
ASSAY_VENV=$ASSAY_CACHE/venv
ASSAY_MODELS=${ASSAY_MODELS:-$ASSAY_CACHE/models}
export ASSAY_CACHE ASSAY_DEPS ASSAY_VENV ASSAY_MODELS

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }
