// Package lab runs two nodes with their daemons, an arbiter, a client and the networks between them on one machine, loses parts of them on
// purpose and measures what a client of the virtual machine noticed.
//
// # Isolation
//
// A lab is one process tree in its own pid, mount and network namespaces, and in its own user namespace when it isn't started by root.
// [Start] runs the calling program again inside them: stage "init" is pid 1 there, mounts a fresh /proc and /run and starts stage "worker",
// the same program with the same arguments, which finds itself [Inside]. Pid 1 does nothing but reap and pass on signals. When it dies,
// for whatever reason, the kernel kills everything in the lab and removes its namespaces, bridges and taps. It dies with the worker
// and, unless the lab is detached, with the process that started it. What is left is a folder; a lock tells whether a lab still uses it,
// and the next command removes it when none does.
//
// # Network
//
// Every node and the client has a network namespace, made by [NewTopology]. The replication links run through bridges in a further one
// ("fabric"), so that a link can be lost silently as well as with its carrier.
//
// # Daemons
//
// A [Node] runs the real colod in its host's network, the [Voter] a witness or etcd in that of a third host. They are started as a service manager
// starts them, from files that [New] has written, and know nothing of the lab. Steps ask them by their API; the [Journal] follows their
// events. A host's processes are found by their network: that is what a loss of power kills.
//
// # Scenarios
//
// A [Scenario] is a list of named steps on a running lab and a list of checks on what was measured. Steps run one after the other in one
// goroutine; probes run beside them and are waited for at the end. [Result] is what comes out.
//
// Unless said otherwise the types of this package are for one goroutine.
package lab
