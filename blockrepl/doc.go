// Package blockrepl keeps a VM's disks equal on two nodes, over stock QEMU.
//
// # Layout
//
// A disk D is the same few block nodes on whichever node it is:
//
//	unprotected or primary            standby or secondary
//
//	device blk-D                      device blk-D
//	quorum colo-D                     quorum colo-D
//	├ parent-D      (the image)       └ replication childs-D
//	└ nbd-D         (the peer's         └ active-D   what the copy of the guest wrote
//	                 parent-D; only         └ hidden-D   what the primary overwrote
//	                 while protected)           └ parent-D   (the image), exported as D
//
// The peer's disk is a plain NBD child of the quorum, without the primary half
// of QEMU's replication driver: that one answers success for writes that failed
// on the peer. With the plain child they come as QUORUM_REPORT_BAD, and the
// guest goes on with the disk that is left.
//
// A promoted secondary keeps its chain: when QEMU has committed the overlays,
// childs-D lies directly on parent-D ([Committed]), and the disk can be
// replicated again, any number of times, as if it had always been a primary.
//
// # Order
//
// On the standby's side: [Images.CreateOverlays], start QEMU with [StandbyArgs],
// [Export]; after its promotion [Promote], then [WaitCommitted] and
// [ReleaseOverlays].
//
// On the primary's side: [NewMirror], [Mirror.Sync] while the guest runs,
// [Mirror.Switch] while it is stopped at pre-switchover. While COLO runs,
// [Rotate] and [Confirm] keep the bitmap small. When the peer is lost: yank
// [YankNodes] out of band, then x-colo-lost-heartbeat and [Detach]. When
// something before COLO's start fails: [Mirror.Abort].
//
// While COLO runs nothing but the guest may write to the disks: no block job, no
// qemu-io. A write that reaches the secondary in the middle of a checkpoint, when
// it empties its overlays, corrupts them and ends it (seen on 11.1). The guest
// can't, because it is stopped and drained by then.
//
// # What is durable, and the two bitmaps
//
// A bitmap on parent-D, "colo-sync", records what the guest writes. A resync to
// a disk that was the peer's before needs just that. But data that was sent to
// the peer need not be on its platters yet, and a peer that loses power loses
// them. So nothing is forgotten when it is sent: it moves to a second bitmap, "colo-held",
// is forgotten by [Confirm], once the peer has flushed, and comes back into
// "colo-sync" when the peer is lost before ([Detach], [Mirror.Abort], and again
// before the next sync).
//
// # Caching
//
// Images are opened with QEMU's defaults, cache.direct=off and aio=threads: they
// work on every file system, tmpfs included, and a guest's flush is an
// fdatasync on both nodes, so what the guest flushed survives the loss of
// either. The overlays get the same, because between promotion and the end of
// the commit they hold the only copy of what the guest flushed. Guests are not
// offered discard: a quorum doesn't pass it on, and ranges of undefined content
// would let the two copies of the guest read different data. Writing zeroes
// makes holes in both images (discard=unmap), and so do the zeroes of a full
// sync, which don't travel either.
//
// # Concurrency
//
// All functions may be called concurrently for different VMs. For one VM they
// must not overlap, except [Mirror.SetSpeed], [Mirror.Copied], [Mirror.Abort] and
// [YankNodes], which may be used at any time. No function leaves a goroutine
// behind.
package blockrepl
