// Package compare decides what a protected guest may say. It is given the packets of both copies, the primary's and the
// secondary's, and lets a packet of the primary out when the secondary could go on from it: when it has said the same
// bytes and has received what the packet acknowledges, or when a checkpoint has made it equal since.
//
// TCP is compared as streams: how a copy cuts its bytes into segments, repeats them or mixes acknowledgements into them
// doesn't matter. UDP, ICMP, fragments and other protocols over IP are compared datagram by datagram, as a multiset with a
// bound. What isn't IP, and the neighbour discovery of IPv6, isn't compared and leaves at once. IPv4 and IPv6, with and
// without VLAN tags, are treated alike, except that only plain IPv4 can have its sequence numbers adapted on the secondary
// (QEMU's filter-rewriter): elsewhere each new TCP connection costs a checkpoint.
//
// # Rules for TCP
//
//   - A byte leaves when the secondary has sent the same byte at the same position since the last checkpoint, or when the
//     primary had sent it before that checkpoint.
//   - An acknowledgement leaves when the secondary has acknowledged as much. A client that was told that its data arrived
//     forgets it, so nothing else could give it to a secondary that lacks it.
//   - SYN+ACK waits for the secondary's: the client's answer to it is what filter-rewriter takes its offset from.
//   - SYN of a guest that connects, and every SYN where nothing rewrites, must have the secondary's sequence number, which
//     it never has: a checkpoint is asked for at once.
//   - FIN counts as a byte. RST waits for the secondary's.
//   - A mismatch, a reset of one copy alone, or a packet that has waited too long asks for a checkpoint.
//
// # Order
//
// An [Engine] begins blind: it holds everything. [Engine.Stopped] says that the primary's guest stands still and that
// all it has sent was handed over; [Engine.Resumed] that a checkpoint has made the copies equal. Then what was sent before
// the stop leaves, and what the secondary has said before is forgotten. Packets of the primary that come between the two
// calls count as sent after the checkpoint, which is safe whatever they are. [Engine.Hold] ends all releasing for good.
//
// # Concurrency and memory
//
// An Engine and the chunks it is given belong to one goroutine. Nothing is copied: packets that wait stay in the [Chunk]
// they were read into. The engine never blocks and never refuses a packet; beyond its bounds it drops what came last and
// asks for a checkpoint, which frees everything.
//
// # What it doesn't see
//
// Packets of the secondary from before a checkpoint that arrive after [Engine.Resumed] are taken for new ones. They were
// computed from the same past, so they only matter if the copies diverge at that very point and the primary is lost before
// the next checkpoint; QEMU's own comparer has the same gap.
package compare
