# The first process of a test container's own process and mount namespaces: $1 is its folder, $2 its name, $3 a folder
# of wheels. It mounts the root file system and boots it until it is powered off; all of it goes with this process.
set -eu
cd "$1"
mount -t tmpfs -o mode=755 tmpfs /run # what systemd-nspawn notes of its containers stays in here

# Relative names: a comma or a colon in the path of the checkout would end an option.
layers() { mount -t overlay overlay -o lowerdir=lower,upperdir=upper/upper,workdir=upper/work root; }
mkdir -p upper/upper upper/work
layers 2>/dev/null || { # the checkout lies on an overlay itself
  mount -t tmpfs tmpfs upper
  mkdir upper/upper upper/work
  layers
}
mkdir -p root/wheels
mount --bind -o ro "$3" root/wheels

# Systemd 256 and newer boots on control groups of version 2 alone; they are here, if without controllers.
for library in lower/usr/lib/*/systemd/libsystemd-shared-25[6-9]*.so lower/usr/lib/*/systemd/libsystemd-shared-2[6-9]?*.so; do
  if [ -e "$library" ]; then export UNIFIED_CGROUP_HIERARCHY=1; fi
done

while :; do
  code=0
  systemd-nspawn --quiet --directory=root --machine="$2" --boot --private-network --register=no --keep-unit \
    --link-journal=no --resolv-conf=off --timezone=off --settings=no --console=read-only || code=$?
  [ "$code" = 133 ] || exit "$code" # 133: it was rebooted
done
