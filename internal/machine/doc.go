// Package machine boots clean Debian systems in namespaces of this machine, for tests of what is installed: packages, units and the guides.
//
// [Make] makes a system's files with mmdebstrap. Any number of machines can be booted from them by [Boot]; each gets an overlay of its own, so what one writes no
// other sees, and its own network, processes and cgroups, with the real systemd as its first process. Machines are joined by [Cable]. It needs root, and nothing of
// this machine is changed but for a cgroup a machine, which goes with it.
//
// A Machine's methods may be called concurrently. Stop must be called; when the caller dies before, the kernel ends the machine.
package machine
