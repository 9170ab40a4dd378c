package fence

import (
	"context"
	"errors"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// Peer carries a message to the other node's [Arbiter.Receive]. The other node must know for certain who sent it.
//
// An error means that no reply came, and leads to fencing. A peer that answers, but not with a reply (it is starting, it is of another version),
// must be reported with [ErrAnswered]: who answers isn't powered off.
type Peer interface {
	Exchange(ctx context.Context, m Message) (Reply, error)
}

// ErrAnswered marks the errors of a Peer that is alive.
var ErrAnswered = errors.New("the peer answers, but not this")

// Message is what one node's arbiter sends to the other's. It is for JSON.
type Message struct {
	Kind string `json:"kind"`
	VM   string `json:"vm"`
	// Session and Seq order the messages of a node about a VM, so that one that was given up isn't taken late.
	Session uint64 `json:"session"`
	Seq     uint64 `json:"seq"`
	// Have is the sender's record, and Epoch how often the VM was forgotten before it. Sure: it is certain that the receiver has no newer one
	// of its own making.
	Have       *arbiter.Record `json:"have,omitempty"`
	Epoch      uint64          `json:"epoch,omitempty"`
	Sure       bool            `json:"sure,omitempty"`
	Next       *arbiter.Record `json:"next,omitempty"`
	Generation uint64          `json:"generation,omitempty"`
}

// Reply answers a Message.
type Reply struct {
	// Busy: try again, something about this VM is under way here. Refused says why, if it is something else.
	Busy    bool   `json:"busy,omitempty"`
	Refused string `json:"refused,omitempty"`
	// Have is the replier's record after the message; Epoch and Sure as in Message.
	Have  *arbiter.Record `json:"have,omitempty"`
	Epoch uint64          `json:"epoch,omitempty"`
	Sure  bool            `json:"sure,omitempty"`
}

const (
	kindCompare = "compare" // tell each other what you have; the newer record counts
	kindStore   = "store"   // store Next, if it follows
	kindForget  = "forget"
)
