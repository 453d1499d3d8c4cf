# Sourced by the entry points, which set $module: run it with a Python. What runs in a guest finds that
# Python's environment first on its PATH, so those ask for the project's ($venv); the others take any.
home=$(dirname "$(readlink -f "$0")")/..
python=${NYDUS_EROFS_PYTHON:-${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}}
if [ -z "$python" ]; then
    python=python3
    if [ "$venv" ]; then python=$("$home/scripts/setup")/bin/python || exit 125; fi
fi
PATH=$PATH:/usr/sbin:/sbin PYTHONPATH=$home exec "$python" -P -m "vm.$module" "$@"
