package colo

import (
	"errors"
	"strings"

	"github.com/coloctl/coloctl/qmp"
)

// A QEMU that is told to end by somebody else (a signal, virsh destroy, quit on another monitor) says so first, by SHUTDOWN. Then it leaves COLO as if the
// peer were lost, and lives for some milliseconds more. A primary that took that for the peer's loss would claim, win, and be dead, while the peer, which is
// well, ends itself because it has lost. So such a copy counts as dead from that word on.
//
// The peer may notice, and tell this node's daemon, before the daemon has read the word. But QEMU writes it to each of its monitors before it lets go of the
// peer, so a reply to a question that is asked afterwards comes behind it on the same socket: whoever has the reply can have the word.

// errDying is what a copy answers that somebody else than the node is ending.
var errDying = errors.New("QEMU was told to end by somebody else, and is about to")

const guestShutdown = "guest-shutdown"

// noteEnd keeps what a SHUTDOWN says, and returns its reason.
func (c *qemuCopy) noteEnd(ev qmp.Event) (reason string) {
	var d struct {
		Guest  bool
		Reason string
	}
	switch err := ev.Decode(&d); {
	case err != nil:
	case d.Reason == guestShutdown:
		c.off.Store(true)
	case !d.Guest && strings.HasPrefix(d.Reason, "host-"):
		if !c.dying.Swap(true) {
			c.log.Warn("QEMU was told to end", "reason", d.Reason)
		}
	}
	return d.Reason
}

// readEnds notes all that has come on the rescue socket up to now. It may be called concurrently.
func (c *qemuCopy) readEnds() {
	for {
		select {
		case ev, ok := <-c.ends.C():
			if !ok {
				return
			}
			c.noteEnd(ev)
		default:
			return
		}
	}
}
