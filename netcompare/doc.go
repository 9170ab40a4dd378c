// Package netcompare is the network half of protection: a VM's NICs, their taps and bridges, and QEMU's filters and
// comparers that let a packet of the guest out only when both copies have said the same.
//
// # The parts
//
// On the primary each NIC N has a filter-mirror (what comes from the LAN is copied to the secondary), a pair of
// filter-redirectors (what the guest sends goes to the comparer, what the comparer releases goes to the tap) and a
// colo-compare with an iothread. On the standby each NIC has two filter-redirectors (mirrored packets in, the guest's
// packets out to the primary's comparer) and a filter-rewriter, which keeps TCP sequence numbers as the clients know them.
// The standby listens, the primary connects.
//
// # Order
//
//	standby            primary
//	Listen
//	                   Connect        filters are off: nothing changes for the guest
//	                   Enable         the guest is stopped at pre-switchover
//	                   … COLO runs …
//	the primary is lost:               the secondary is lost:
//	Promote, Announce                  (yank YankChardevs out of band first), Disconnect
//
// A promoted secondary keeps its rewriters for as long as its QEMU lives, because connections that are open at that moment
// need them. Connect finds them and puts the new filters before them, so roles may change any number of times.
//
// # Outside of QEMU
//
// With [Options].External a process compares instead of colo-compare: package comparer, by the rules of package compare. QEMU
// hands it the packets of both copies; what the guest says while the process isn't there is dropped. See external.go.
//
// # What isn't compared
//
// Of QEMU's own comparer: only IPv4 TCP, UDP and ICMP are compared. ARP, IPv6 and everything else leave the primary at once, also when the peer is
// lost: [Host.Cut] takes the tap off the LAN first, [Host.Join] puts it back. For the time in which nobody may be there to cut it [Host.Guard] puts the
// tap behind a gate in the kernel, which stops those frames by itself when its lease ([Leases]) is not renewed.
//
// # Calling
//
// Functions that take a *qmp.Client run one command after the other and may be called from any goroutine, but two changes
// of one VM must not overlap. Connect and Listen undo what they did when they fail. Disable, Disconnect and Promote go by
// what QEMU has, not by what it should have: they may be called again after any outcome, go on past errors and return all
// of them joined. A [Host] has no state; its methods may be called concurrently, except for two on one tap.
package netcompare
