package colo

import (
	"fmt"
	"slices"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/state"
)

// coldFacts is all that counts when a node has a VM that should run and of which no QEMU runs here.
type coldFacts struct {
	me      string
	rec     state.VM
	disks   bool // all disks here are whole
	answer  coldAnswer
	held    arbiter.Record // by the arbiter, when it answered with one
	peer    string
	heard   bool // the peer has answered
	peerHas bool // it knows the VM
	there   PeerVM
	waited  time.Duration // since this node has been able to decide
	order   time.Duration // how long a last secondary lets the last primary go first
}

// coldAnswer is what came of asking the arbiter.
type coldAnswer int

const (
	noArbiter coldAnswer = iota // none is configured
	silentArbiter
	emptyArbiter // it has no record of the VM
	arbiterHolds
)

// coldAction is what to do with a VM that should run.
type coldAction string

const (
	coldStart coldAction = "start"
	coldAgree coldAction = "agree" // start after the peer has promised not to
	coldWait  coldAction = "wait"  // something that is on its way will decide
	coldHold  coldAction = "hold"  // a person or the arbiter has to decide
	coldRest  coldAction = "rest"  // it is not wanted any more
)

// coldRow is one row of the decision table for cold starts.
type coldRow struct {
	when   string
	holds  func(coldFacts) bool
	action coldAction
	why    func(coldFacts) string
}

func say(format string, args ...func(coldFacts) any) func(coldFacts) string {
	return func(f coldFacts) string {
		values := make([]any, len(args))
		for i, a := range args {
			values[i] = a(f)
		}
		return fmt.Sprintf(format, values...)
	}
}

var (
	thePeer   = func(f coldFacts) any { return f.peer }
	ownGen    = func(f coldFacts) any { return f.rec.Generation }
	ownSet    = func(f coldFacts) any { return f.rec.Members }
	heldGen   = func(f coldFacts) any { return f.held.Generation }
	heldSet   = func(f coldFacts) any { return f.held.Members }
	theirGen  = func(f coldFacts) any { return f.there.Generation }
	stillWait = func(f coldFacts) any { return (f.order - f.waited).Round(time.Second) }
	alone     = func(f coldFacts) bool { return aloneIn(f.rec, f.me) }
	member    = func(f coldFacts) bool { return slices.Contains(f.rec.Members, f.me) }
	primary   = func(f coldFacts) bool { return f.rec.Role == state.RolePrimary }
	entrusted = func(f coldFacts) bool {
		return f.answer == arbiterHolds && f.held.Generation > f.rec.Generation && slices.Equal(f.held.Members, []string{f.me})
	}
	unasked = func(f coldFacts) bool { return f.answer == noArbiter || f.answer == silentArbiter }
)

// runsThere says what becomes of a copy here while the peer runs the VM: whether it gets a standby is for its owner to say.
func runsThere(f coldFacts) string {
	if f.there.Want == WantRunning {
		return fmt.Sprintf("it runs on %s alone, as its owner wants, until it is protected again", f.peer)
	}
	return fmt.Sprintf("it runs on %s, which takes this node back as its standby", f.peer)
}

// coldTable decides by generations who starts a VM after an outage. The first row that holds counts. The claim that follows a start asks the
// arbiter once more, atomically: this table only saves it from being asked in vain, and says why nothing happens.
var coldTable = []coldRow{
	{"the peer's copy is a secondary that has not noticed the end of the primary yet", func(f coldFacts) bool {
		return f.heard && f.there.Running && f.there.State == Secondary
	}, coldWait, say("the copy on %s lives, and is about to go on", thePeer)},
	{"the peer runs the VM", func(f coldFacts) bool { return f.heard && f.there.runs() },
		coldWait, runsThere},
	{"its owner has stopped it on the peer", func(f coldFacts) bool {
		return f.heard && f.there.Want == WantStopped && f.there.Generation >= f.rec.Generation
	}, coldRest, say("it was stopped on %s", thePeer)},
	{"the VM was never started", func(f coldFacts) bool { return f.rec.Generation == 0 && f.answer != arbiterHolds },
		coldStart, say("it is new")},
	{"this node's record names others", func(f coldFacts) bool { return !member(f) && !entrusted(f) },
		coldWait, say("generation %d belongs to %v: this node's disks are stale", ownGen, ownSet)},
	{"the arbiter's record names others", func(f coldFacts) bool { return f.answer == arbiterHolds && !f.held.Has(f.me) },
		coldWait, say("the arbiter's generation %d belongs to %v: this node's disks are stale", heldGen, heldSet)},
	{"the peer's generation is higher and names others", func(f coldFacts) bool {
		return f.heard && f.there.Generation > f.rec.Generation && !slices.Contains(f.there.Members, f.me)
	}, coldWait, say("%s is at generation %d: this node's disks are stale", thePeer, theirGen)},
	{"a disk here is incomplete", func(f coldFacts) bool { return !f.disks },
		coldHold, say("a disk here is incomplete: it needs %s, or a person who accepts the loss", thePeer)},
	{"the arbiter has no record, and only this node may go on, by its own", func(f coldFacts) bool { return f.answer == emptyArbiter && alone(f) && primary(f) },
		coldHold, say("the arbiter has no record of a VM of which generation %d belongs to this node alone: if it has lost its memory, or is a new one, coloctl vm restore-record", ownGen)},
	{"the arbiter has no record", func(f coldFacts) bool { return f.answer == emptyArbiter },
		coldHold, say("the arbiter has no record of a VM that is at generation %d here: it has lost its memory or is the wrong one", ownGen)},
	{"a secondary here went on without a note in the state folder", func(f coldFacts) bool {
		return f.answer == arbiterHolds && hidden(f.rec, f.held, f.me)
	}, coldHold, say("the copy here went on in generation %d while the state folder could not be written: its disks may lack what it wrote: it needs a person who accepts the loss", heldGen)},
	{"this node alone may go on, but has not yet, and the arbiter is silent about what came of it", func(f coldFacts) bool {
		return f.answer == silentArbiter && alone(f) && !primary(f)
	}, coldHold, say("generation %d belongs to this node alone, but the arbiter, which may know that its copy went on, does not answer", ownGen)},
	{"nobody else may go on, by this node's record", alone,
		coldStart, say("generation %d belongs to this node alone", ownGen)},
	{"nobody else may go on, by the arbiter's record", func(f coldFacts) bool {
		return f.answer == arbiterHolds && slices.Equal(f.held.Members, []string{f.me})
	}, coldStart, say("the arbiter's generation %d belongs to this node alone", heldGen)},
	{"both copies are current, this one was the primary, the arbiter answers", func(f coldFacts) bool { return f.answer == arbiterHolds && primary(f) },
		coldStart, say("both copies of generation %d are current; this node was the primary", heldGen)},
	{"both are current, this one was the secondary, the primary may still come", func(f coldFacts) bool { return f.answer == arbiterHolds && f.waited < f.order },
		coldWait, say("both copies of generation %d are current; %s was the primary and goes first, for %s more", heldGen, thePeer, stillWait)},
	{"both are current, the primary did not come, the arbiter answers", func(f coldFacts) bool { return f.answer == arbiterHolds },
		coldStart, say("both copies of generation %d are current and %s did not start", heldGen, thePeer)},
	{"both are current, no arbiter answers, both nodes are here, this one was the primary", func(f coldFacts) bool {
		return unasked(f) && f.heard && f.peerHas && !f.there.Running && f.there.Generation == f.rec.Generation && primary(f)
	}, coldAgree, say("both copies of generation %d are current; %s gives way", ownGen, thePeer)},
	{"both are current, no arbiter answers, both nodes are here", func(f coldFacts) bool {
		return unasked(f) && f.heard && f.peerHas && !f.there.Running && f.there.Generation == f.rec.Generation
	}, coldWait, say("both copies of generation %d are current; %s was the primary and starts", ownGen, thePeer)},
	{"the other copy may have gone on, and no arbiter is configured", func(f coldFacts) bool { return f.answer == noArbiter },
		coldHold, say("%s may have gone on and can't be asked; without an arbiter only a person can say that it has not", thePeer)},
	{"the other copy may have gone on, and the arbiter is silent", func(coldFacts) bool { return true },
		coldHold, say("%s may have gone on and can't be asked, and the arbiter does not answer", thePeer)},
}

// decideCold returns what the first row that holds says.
func decideCold(f coldFacts) (coldAction, string) {
	for _, r := range coldTable {
		if r.holds(f) {
			return r.action, r.why(f)
		}
	}
	panic("the last row holds always")
}
