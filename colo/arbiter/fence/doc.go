// Package fence powers hosts off with ClusterLabs' fence agents, and is an arbiter for two nodes without a third machine, for which a
// successful fencing is proof.
//
// # What it needs
//
//   - A device that really cuts the peer's power (or resets it) and that answers when the peer doesn't: a management controller with its own
//     network and supply, a switched power strip, the hypervisor below. An agent that asks the peer itself (ssh) proves nothing. A controller that shares
//     the host's power cord is silent when the cord is pulled, and then the survivor holds; use two devices, or a witness.
//   - Its agent as an executable, of the distribution's fence-agents, which takes its options on standard input. Exit status 0 of
//     action off is taken as the proof that the peer is off; unless told otherwise the agent is asked for the status afterwards, too.
//   - A delay on one of the two nodes ([Options.Delay]), longer than the agent's run time. Without it both nodes may power each other
//     off when only the links between them are cut. Nothing is lost by that, but both are down.
//   - The two nodes' [Peer], by any network, in normal times: every change of a record that both can answer for is agreed by both, and
//     fencing is only for a peer that doesn't answer.
//
// # What it gives, and what not
//
// A node whose host has not been restarted since it last agreed with the peer may go on alone as soon as the peer is off. That is proof because the peer
// could have gone on alone only by powering this host off, or with this node's agreement.
//
// A node whose host was restarted can't know whether the peer went on alone before it fell silent, so powering the peer off proves nothing about the
// past: it must hear from the peer ([ErrStale]), or a person decides. Unlike a witness, two nodes can't tell after a power cut for both
// which of them was last, unless both are back. The host is told from its next start by the kernel's boot id.
//
// The first record of a VM, taking a node in, and Forget need both nodes. A forgotten VM leaves a few bytes in the files, so that a message of
// before can't bring it back.
//
// # Concurrency
//
// All methods may be called concurrently. A fencing that was begun goes on when its caller stops waiting; [Arbiter.Close] waits for it.
package fence
