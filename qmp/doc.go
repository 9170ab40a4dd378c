// Package qmp talks to one QEMU over its machine protocol.
//
// A [Client] owns one QMP socket. It is made by [Dial] or [NewClient], which
// also do the handshake, and it is usable until the connection ends; it never
// reconnects, because a new connection has missed events and its owner has to
// ask again what is. [Client.Done] and [Client.Err] tell the end.
//
// # Ordering
//
// QEMU runs in-band commands one after the other, whatever socket they came
// from. The client hands QEMU one in-band command at a time and keeps the next
// ones in a short queue of its own. This is a matter of safety: a QEMU with
// eight in-band commands waiting stops reading its socket, and then the
// out-of-band yank that would free it isn't read either. For the same reason
// it is the reply that frees the slot and not the end of the caller's context:
// a command whose caller went away still occupies QEMU. When the queue is full
// Execute fails at once with [ErrBusy].
//
// Out-of-band commands ([Client.ExecuteOOB]) overtake everything in band.
//
// Events are handed to each [Subscription] in QEMU's order. A reply and an
// event that QEMU sends in this order are seen in this order by the reader, but
// different goroutines receive them, so don't conclude from a reply that its
// events were already received.
//
// # Concurrency
//
// All methods may be called concurrently. A Client has two goroutines, one that
// reads and one that writes; both end with the connection, and [Client.Close]
// waits for them. The reader never waits for a subscriber: a subscriber that
// doesn't keep up loses events and is told so, see [Event].Lost, and must then
// query the state it follows.
//
// # Times
//
// The end of a context ends the wait and nothing else: the command may still be
// carried out, see [WaitError]. No time-out is added by this package except for
// the handshake and for writing to the socket. A healthy QEMU can be silent for
// seconds (a checkpoint, a drain, a slow disk), so a time-out is a suspicion and
// not a proof of death.
package qmp
