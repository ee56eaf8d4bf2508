#!/bin/sh
# Makes docker run --gpus all work on a host with an NVIDIA driver: the NVIDIA container toolkit, registered with Docker, and a CDI
# specification of the GPUs. For hosts with apt or dnf. The steps are those of NVIDIA's "Installing the NVIDIA Container Toolkit".
#
#   sudo scripts/install-nvidia-container-toolkit.sh             do it
#   scripts/install-nvidia-container-toolkit.sh --dry-run        print what would be done
#   sudo scripts/install-nvidia-container-toolkit.sh --undo      take it all back (with --dry-run first: print that)
set -eu

VERSION=1.18.0-1
PACKAGES="nvidia-container-toolkit nvidia-container-toolkit-base libnvidia-container-tools libnvidia-container1"
SOURCE=https://nvidia.github.io/libnvidia-container
KEY=/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg
LIST=/etc/apt/sources.list.d/nvidia-container-toolkit.list
REPO=/etc/yum.repos.d/nvidia-container-toolkit.repo
CDI=/etc/cdi/nvidia.yaml
DAEMON=/etc/docker/daemon.json
KEPT=$DAEMON.before-nvidia-container-toolkit

stop() {
    echo "install-nvidia-container-toolkit.sh: $1" >&2
    exit 1
}

# Prints a command, and runs it unless this is a dry run.
step() {
    echo "+ $1"
    if [ "$dry" = no ]; then
        sh -eu -c "$1" || stop "that step failed; the reason is above. Fix it and run this again, or use --undo"
    fi
}

# name=version in apt's words, name-version in dnf's.
pinned() {
    for package in $PACKAGES; do
        printf '%s%s%s ' "$package" "$1" "$VERSION"
    done
}

install() {
    command -v nvidia-smi > /dev/null || stop "there is no NVIDIA driver (nvidia-smi); install the driver of your distribution first"
    command -v docker > /dev/null || stop "there is no docker; install it first: https://docs.docker.com/engine/install/"
    case "$(command -v docker)" in
        /snap/*) stop "docker is a snap, which cannot see the toolkit; install Docker's own packages instead" ;;
    esac
    if [ "$manager" = apt ]; then
        step "apt-get update && apt-get install -y --no-install-recommends ca-certificates curl gnupg"
        step "curl -fsSL -o $KEY.asc $SOURCE/gpgkey && gpg --dearmor --yes -o $KEY < $KEY.asc && rm $KEY.asc"
        step "curl -fsSL -o $LIST $SOURCE/stable/deb/nvidia-container-toolkit.list"
        step "sed -i 's#deb https://#deb [signed-by=$KEY] https://#g' $LIST"
        step "apt-get update && apt-get install -y --allow-downgrades $(pinned "=")"
    else
        step "curl -fsSL -o $REPO $SOURCE/stable/rpm/nvidia-container-toolkit.repo"
        step "dnf install -y $(pinned "-")"
    fi
    if [ -e "$KEPT" ]; then
        echo "$KEPT is there already and stays: an earlier run kept it"
    elif [ -e "$DAEMON" ]; then
        step "cp -p $DAEMON $KEPT"
    else
        step "mkdir -p ${DAEMON%/*} && echo '{}' > $KEPT"
    fi
    step "nvidia-ctk runtime configure --runtime=docker"
    step "mkdir -p ${CDI%/*} && nvidia-ctk cdi generate --output=$CDI"
    step "systemctl restart docker"
    echo "Done. Try: docker run --rm --gpus all ubuntu nvidia-smi"
}

undo() {
    step "rm -f $CDI"
    if [ -e "$KEPT" ]; then
        step "mv $KEPT $DAEMON"
    else
        echo "$DAEMON stays as it is: this script did not change it"
    fi
    if [ "$manager" = apt ]; then
        step "apt-get remove -y $PACKAGES"
        step "rm -f $LIST $KEY"
    else
        step "dnf remove -y $PACKAGES"
        step "rm -f $REPO"
    fi
    step "systemctl restart docker"
    echo "Done: what was installed and registered is gone."
}

dry=no
action=install
for argument in "$@"; do
    case "$argument" in
        --dry-run) dry=yes ;;
        --undo) action=undo ;;
        *)
            sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
            exit 2
            ;;
    esac
done
if command -v apt-get > /dev/null; then
    manager=apt
elif command -v dnf > /dev/null; then
    manager=dnf
else
    stop "this host has neither apt nor dnf; follow NVIDIA's guide for it: https://docs.nvidia.com/datacenter/cloud-native/container-toolkit"
fi
[ "$dry" = yes ] || [ "$(id -u)" = 0 ] || stop "it changes this host and must be run by root: put sudo in front, or --dry-run behind"
"$action"
