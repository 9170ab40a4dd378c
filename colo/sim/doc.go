// Package sim plays histories of a pair of nodes on virtual time, with everything around the engine simulated and the engine itself real: its
// nodes, state machines, plans and journal, and the heartbeats with their datagrams. It looks for a history that breaks a promise.
//
// # The promises
//
// After every event:
//
//   - One voice: no two copies can say something on the LAN at the same time, and a copy is never heard again once another one was. What leaves
//     without being compared (ARP and the like) counts from the moment on at which a running guest's tap is in the bridge.
//   - No old data: a copy that is heard knows everything that clients have seen confirmed, on its disk and, unless the guest was booted
//     since, in its memory.
//   - No lost write: the disks of a pair are equal at each checkpoint, and when no copy may start at least one disk holds all that was confirmed.
//   - No fact is unexpected to the table, and nothing that the engine wants to store breaks the rules of package state.
//
// At the end of a history every fault is mended. Then the nodes must come to rest, the VM must run or be started on one of them, or both must say
// why not; it must become protected again, answer its clients, and survive one more loss or switchover.
//
// # The world
//
// A [Schedule] is a list of steps: faults that last a while, and requests of operators. A step comes after a time, or right before the n-th operation of
// a host from then on, which is how every step of a plan and every write of the journal is hit. Faults are: QEMUs, daemons and hosts that end or stand
// still, links that are cut in one or both directions or lose datagrams, an arbiter out of reach or whose answers get lost, calls that are carried out twice
// or long after their caller has given up, slow or failing operations, guests that switch themselves off, writes that fail on the primary's own half of the disk. Operators
// start, stop, protect, unprotect, switch over, edit, delete, and vouch for the end of a host that they have powered off. In one of four histories the nodes act by themselves as
// well ([colo.Recovery]). In one of four there is no arbiter (see [Unarbitrated]): what then may go on is what is proven, and a person decides the rest as above. In one of eight the call that tells the peer that
// its copy counts may get lost, and both hosts may come back from a loss of power without an arbiter. See [Later] and [Unarbitrated].
//
// COLO is modelled by what it promises: the primary's answers leave when the secondary has given the same one or at the end of a checkpoint; they are held
// while the other side is silent or gone, until the engine releases them; the secondary's writes go into an overlay, the primary's to both disks; a
// write waits for both. A killed process closes its connections if its host lives and packets pass; TCP sends again what was lost.
//
// Not modelled: several VMs, disks or NICs; a NBD server that fails alone; unflushed writes; clocks that jump; an arbiter that forgets.
//
// # What the simulator excuses
//
// A primary whose daemon is dead, stopped or has just come back can't cut its tap. COLO goes on holding what it answers, and the gate in the kernel holds ARP and the like as
// soon as its lease ends. When the whole host stood still the lease's clock did too: that what is left of the lease is heard then is counted (Tally.Unattended), not reported.
// A watchdog of the hardware would close that gap.
//
// When the primary's half of a disk fails while its daemon is dead or stopped, or in the second before its copy ends, nobody has put on record that the half lacks what came then. If both copies
// are lost before a daemon has looked at that QEMU, the VM may start again from that half. That is counted too, and only when no copy lives that has more.
//
// # Determinism
//
// Everything random follows from the schedule's seed, drawn for each actor separately, so that the order in which goroutines run at one instant does not
// change what others draw. Every event has an instant of its own. The engine's locks may not be held while virtual time has to pass: what is
// called under one takes no time here.
package sim
