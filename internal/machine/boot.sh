# $1: root  $2: name  $3: name of the cgroup  $4: stage
set -e
case $4 in
outer) # in a mount namespace of its own
	exec 3<&0 </dev/null
	mount --make-rprivate /
	cg=$(mktemp -d)
	mount -t cgroup2 cgroup2 "$cg"
	rmdir "$cg/$3"/*/ "$cg/$3" 2>/dev/null || true
	mkdir "$cg/$3"
	# From here on everything is in the cgroup that the machine takes for the root.
	(
		sh -c 'echo $PPID' >"$cg/$3/cgroup.procs"
		exec 3<&-
		exec setpriv --pdeathsig KILL unshare --mount --pid --net --uts --ipc --cgroup --fork --kill-child sh "$0" "$1" "$2" "$3" inner
	) &
	child=$!
	echo $child
	# Who holds the other end of standard input is who wants this machine; when he is gone, so is it.
	(
		cat >/dev/null
		kill -KILL $child
	) <&3 2>/dev/null &
	exec 3<&-
	wait $child || true
	kill $! 2>/dev/null || true
	for i in 1 2 3 4 5 6 7 8; do
		find "$cg/$3" -depth -type d -exec rmdir {} + 2>/dev/null && break
	done
	umount -l "$cg"
	rmdir "$cg"
	;;
inner)
	R=$1
	mount -t proc proc "$R/proc"
	# Each machine is one, though they share a kernel: this is what tells hosts apart.
	cat /proc/sys/kernel/random/uuid >"$R/.boot_id"
	mount --bind -o ro "$R/.boot_id" "$R/proc/sys/kernel/random/boot_id"
	echo "$2" >"$R/etc/hostname"
	mount -t sysfs sysfs "$R/sys"
	mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup"
	mount -t tmpfs -o mode=755,nosuid tmpfs "$R/dev"
	mkdir "$R/dev/net" "$R/dev/pts" "$R/dev/shm"
	for n in null zero full random urandom tty net/tun kvm; do
		[ -e "/dev/$n" ] || continue
		: >"$R/dev/$n"
		mount --bind "/dev/$n" "$R/dev/$n"
	done
	mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$R/dev/pts"
	ln -s pts/ptmx "$R/dev/ptmx"
	ln -s /proc/self/fd "$R/dev/fd"
	mount -t tmpfs tmpfs "$R/dev/shm"
	mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$R/run"
	hostname "$2"
	cd "$R"
	pivot_root . .
	umount -l .
	exec env -i container=other PATH=/usr/sbin:/usr/bin /usr/lib/systemd/systemd
	;;
esac
