// Package heartbeat tells whether the peer node is alive and which path to it is broken.
//
// # How
//
// Two nodes send each other small authenticated datagrams over every path they have: each replication link and the management network. A [Monitor] is one node's
// view of one peer. A path is receiving while datagrams come in, and sending while the peer says that ours do. The peer is
// lost when no path has received anything for Config.Timeout; whether the host died or every cable was cut can't be told
// apart from here, which is what an arbiter is for. While one path still receives, the others' silence is a matter of links.
//
// A lost peer is a suspicion. It says nothing about the peer's VMs, as it is the daemon that was silent and not QEMU.
//
// # Time
//
// A host that dies is noticed after at most Timeout plus the network's delay, counted from its last datagram, so within Timeout + Interval of its death.
//
// A node that was itself stalled (stopped, swapped out, starved) has heard nobody and must not blame the peer for it: a loop that comes back
// more than an Interval late says so ([Stalled]) and starts all waiting anew.
//
// # Lost datagrams
//
// At rest each path carries one datagram an Interval in each direction. As soon as one is missing (a gap in the numbers, or nothing for
// one and a half intervals) this side sends eight times as often and asks the peer to do the same, at once, and both go on so for a hundred
// intervals. So with the default settings Timeout is 32 datagrams long on a path that loses any, and not four. If each datagram is lost with probability
// p independently of the others, all of a window are lost with p^31 for each datagram: with p = 20 % that is 2e-22, or once in 2e12 years at 80
// datagrams a second. The moment before the haste matters more: if p rises from 0 to 20 % at once, the peer is lost falsely with about 20 p^23, or 2e-15 (no
// datagram for one and a half intervals, then twenty requests and answers of which none arrives), once for each such rise. With several paths
// the probabilities multiply. Losses in bursts longer than Timeout are no different from a cut cable.
//
// # Security
//
// A datagram carries an HMAC-SHA256 over all of it, including sender, receiver and path, with a key both nodes share. Each run of a Monitor has an
// incarnation, a number that is never used again. A datagram counts only if it says that the sender has heard our present incarnation, if
// its own incarnation isn't one that was followed by another, and if its number is higher than the last one on its path. So what was recorded at any time
// can't be replayed, also not after a restart of either side; clocks play no part. Wrong datagrams are counted and otherwise ignored. Somebody on the
// path can still cut it, which is no more than the cable can do, and hold datagrams back for a while.
//
// # Concurrency
//
// All methods may be called from any goroutine. Run owns the state; it ends when its context does, after its goroutines and sockets. Events come in
// order; a reader that is too slow loses the oldest ones and knows it ([Subscription.Dropped]). Each carries the whole status, so the last one is always enough.
package heartbeat
