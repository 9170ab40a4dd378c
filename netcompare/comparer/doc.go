// Package comparer is a process that compares the packets of one VM outside of QEMU, and the daemon's hand on it.
//
// # The process
//
// [Run] connects to QEMU's unix sockets: for each NIC what the primary's guest says, what the secondary's says, and the way
// out to the tap; and a QMP socket of its own, which tells it of checkpoints and takes the request for one. It compares by
// package compare. One loop in one goroutine does all that touches packets, so that the order of a packet and an event of
// QEMU is known: QEMU says STOP after the guest's last packet and RESUME before its next one, and both sockets are local,
// so what was read from the one before RESUME could be read from the other was sent before it.
//
// When the process ends, or is killed, QEMU drops what the guest says (see package netcompare): nothing leaves unseen. A
// new process holds everything until a checkpoint, which it asks for at once.
//
// What leaves, leaves only while the process is sure that the other copy is a secondary, see [Lease].
//
// The process must not stand still for long: QEMU's main loop waits when its sockets to it are full.
//
// # The hand
//
// A [Keeper] starts the process, starts it again when it ends or doesn't answer, and ends it. The process belongs to
// nobody: it outlives the daemon, and another Keeper takes it over by its folder.
package comparer
