// Package conform finds out, by doing it, what a QEMU can do of what protecting a VM needs: the choice of capabilities, the standby, the way into COLO,
// checkpoints, the loss of either side by crash and by hanging, and the resync by bitmap.
//
// [Run] drives two copies of a small VM through the engine's own launcher, in the networks of a lab's two hosts, so what passes here is what a node
// does. There is no guest: firmware that finds nothing to boot has memory, devices and a disk, which is enough, and is there at once. What a guest and
// its clients notice is for the lab's scenarios, see [Proof.Judge].
//
// A check that fails keeps those that build upon it from being tried, and no others. Checks run one after the other in the caller's goroutine; at the end
// no process and no network is left, also when ctx ends.
package conform
