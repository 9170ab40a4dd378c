package colo

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// State is what a VM is doing on one node.
type State string

const (
	Stopped       State = "stopped"        // no QEMU here, and the disks here may be current
	Starting      State = "starting"       // being claimed and launched
	Solo          State = "solo"           // runs here, alone
	Syncing       State = "syncing"        // runs here, the peer's disks are being made equal
	Attaching     State = "attaching"      // runs here, its memory goes to the peer and COLO is started
	Protected     State = "protected"      // primary in COLO
	Detaching     State = "detaching"      // primary giving up protection on request
	SwitchingOver State = "switching-over" // primary handing its role to the peer on request
	Standby       State = "standby"        // a prepared secondary waits for the primary
	Secondary     State = "secondary"      // secondary in COLO
	Arbitrating   State = "arbitrating"    // peer lost; silent until it is decided who goes on
	FailingOver   State = "failing-over"   // has won and is turning itself into a lone copy
	Stopping      State = "stopping"       // being shut down on request
	Outdated      State = "outdated"       // no QEMU here, and the disks here are stale: waits for the primary to resync it
	Failed        State = "failed"         // needs a person
)

// EventKind is something that happens to a VM on a node: a request, a fact, or the end of the running plan.
type EventKind string

const (
	// Requests, of a person or of the peer.
	ReqStart      EventKind = "start"
	ReqStop       EventKind = "stop"
	ReqProtect    EventKind = "protect"
	ReqUnprotect  EventKind = "unprotect"
	ReqSwitchover EventKind = "switchover"
	ReqForce      EventKind = "force"     // failover --force: a person says that the other copy is dead
	ReqEdit       EventKind = "edit"      // a new spec
	ReqDelete     EventKind = "delete"    // the VM is to be forgotten
	ReqPrepare    EventKind = "prepare"   // the peer wants a standby
	ReqDrop       EventKind = "drop"      // the peer gives up its standby or secondary
	ReqTakeOver   EventKind = "take-over" // the peer has handed its role over and killed its copy

	// Facts.
	DisksEqual    EventKind = "disks-equal"    // the protect plan has made the disks equal
	ColoStarted   EventKind = "colo-started"   // the standby has gone into COLO
	ChannelLost   EventKind = "channel-lost"   // QEMU says, or a stuck checkpoint shows, that the replication channel is gone
	PeerLost      EventKind = "peer-lost"      // no heartbeat on any link
	PeerDead      EventKind = "peer-dead"      // proof: the peer's node says that its copy is dead
	Exited        EventKind = "exited"         // the QEMU here has ended
	Hung          EventKind = "hung"           // the QEMU here does not answer
	DiskFailed    EventKind = "disk-failed"    // a write to a disk of this node failed
	GuestShutdown EventKind = "guest-shutdown" // the guest has switched itself off

	// Ends of plans.
	Done       EventKind = "done"
	PlanError  EventKind = "plan-error"  // failed and undone
	Lost       EventKind = "lost"        // the arbiter lets another copy go on
	Undecided  EventKind = "undecided"   // the arbiter can't be asked
	UndoFailed EventKind = "undo-failed" // failed, and something of it is left
	Revived    EventKind = "revived"     // checkpoints go on after all
	CopyDead   EventKind = "copy-dead"   // this node's own copy turned out to be unable to go on
)

// Transition is one row of the state machine.
type Transition struct {
	From   State
	Event  EventKind
	Guard  string // name of the condition that must hold; empty is always
	To     State
	Plan   PlanKind // started on entering To, once the running one has been cancelled and undone; empty starts none
	Cancel bool     // without a Plan: the running plan is cancelled; its undo runs, and its end is an event of its own
	Why    string
}

// row is a Transition for several states.
type row struct {
	from   []State
	event  []EventKind
	guard  string
	to     State // same keeps the state
	plan   PlanKind
	cancel bool
	why    string
}

const same State = ""

// Guards, by name. They are functions of what the machine knows, without side effects.
const (
	guardSilent    = "replication-silent"  // the checkpoint that was due has not ended
	guardWhole     = "current-and-whole"   // this node alone is current, and no disk here is incomplete
	guardNoQEMU    = "no-qemu"             // no QEMU of the VM is known to run here
	guardCounted   = "peer-counts"         // as far as this node knows the peer's copy may still go on
	guardHalfGone  = "half-behind"         // the copy here has let go of this node's half of a disk: only the peer's has everything
	guardStays     = "stays-on-disk-error" // the VM's owner wants no switchover for a failed disk
	guardSecondary = "was-secondary"       // this copy was the secondary before the arbitration
	guardFinal     = "guest-is-off"        // the primary's guest has switched itself off: its disks are complete, with or without a QEMU
)

var (
	on    = func(s ...State) []State { return s }
	upon  = func(e ...EventKind) []EventKind { return e }
	table = expand([]row{
		// Alone.
		{on(Stopped, Outdated), upon(ReqStart), "", Starting, planStart, false, "a copy starts only with the arbiter's word"},
		{on(Failed), upon(ReqStart), guardNoQEMU, Starting, planStart, false, "a person tries again"},
		{on(Starting), upon(Done), "", Solo, "", false, "the guest runs, alone"},
		{on(Starting), upon(PlanError, Undecided), "", Stopped, "", false, "the start was undone"},
		{on(Starting), upon(Lost), "", Outdated, "", false, "another copy is newer"},
		{on(Starting), upon(Exited, Hung), "", same, "", true, "QEMU ended or hung while it was started"},
		{on(Starting), upon(ReqStop), "", same, "", true, "the start is taken back"},
		{on(Solo), upon(ReqStop, GuestShutdown), "", Stopping, planStop, false, ""},
		{on(Solo), upon(Exited), "", Stopped, "", false, "the only copy has ended; its disks are current"},
		{on(Solo), upon(Hung), "", same, "", false, "a lone copy is never killed for being slow"},
		{on(Stopping), upon(Done, Exited), "", Stopped, "", true, ""},
		{on(Stopping), upon(PlanError), guardNoQEMU, Stopped, "", false, "QEMU has ended; what it left was not removed"},
		{on(Stopping), upon(PlanError), guardWhole, Solo, "", false, "the guest did not shut down"},
		{on(Stopping), upon(PlanError), "", Failed, "", false, "left as it is: it holds the only current data"},
		{on(Stopping), upon(ReqStop), "", Stopping, planStop, true, "asked again, perhaps by force"},

		// Becoming protected, seen from the primary.
		{on(Solo), upon(ReqProtect), "", Syncing, planProtect, false, ""},
		{on(Syncing), upon(DisksEqual), "", Attaching, "", false, "the disks are equal up to what the guest writes meanwhile"},
		{on(Syncing, Attaching), upon(ReqProtect), "", same, "", false, "under way: the caller waits for its end"},
		{on(Attaching), upon(Done), "", Protected, "", false, "COLO is proven and the arbiter knows both copies"},
		{on(Syncing, Attaching), upon(ReqUnprotect, ChannelLost, PeerLost, PeerDead, Hung), "", same, "", true, "protection is not reached; the guest goes on alone"},
		{on(Syncing, Attaching), upon(PlanError), "", Solo, "", false, "undone: the guest runs on as before"},
		{on(Syncing, Attaching), upon(UndoFailed), guardHalfGone, Outdated, planFence, false, "alone it would have no disk: the peer's copy is the better one"},
		{on(Syncing, Attaching), upon(UndoFailed), "", Arbitrating, planClaim, false, "what is left of replication is taken down like after a loss"},
		{on(SwitchingOver), upon(UndoFailed), "", Arbitrating, planClaim, false, "nothing was handed over, but the tap may be cut"},
		{on(Attaching), upon(Lost), "", Outdated, planFence, false, "the peer has gone on by itself"},
		{on(Attaching), upon(Undecided), "", Arbitrating, planClaim, false, "the arbiter may or may not count the peer's copy: only its word lets this one speak"},
		{on(Attaching), upon(ColoStarted), "", same, "", false, "the running plan proves it"},
		{on(Syncing, Attaching), upon(Exited), guardHalfGone, Outdated, planFence, true, "it had no disk of its own any more: the peer's half has everything"},
		{on(Syncing, Attaching), upon(Exited), "", Stopped, "", true, "the only current copy has ended"},

		// The primary loses the secondary.
		{on(Protected), upon(ChannelLost, PeerDead), "", Arbitrating, planClaim, false, "the tap is cut before the arbiter is asked"},
		{on(Protected), upon(PeerLost), guardSilent, Arbitrating, planClaim, false, "neither heartbeat nor checkpoints"},
		{on(Protected), upon(PeerLost), "", same, "", false, "checkpoints arrive: only the peer's daemon is silent"},
		{on(Detaching), upon(Exited), guardWhole, Stopped, "", true, "the only current copy has ended"},
		{on(Protected, Detaching, SwitchingOver), upon(Exited), guardFinal, Arbitrating, planClaim, true, "its guest had switched itself off: the disks here are the last word"},
		{on(Protected, Detaching, SwitchingOver), upon(Exited), "", Outdated, planFence, true, "the peer's copy goes on; it is told that this one is dead"},
		{on(Protected), upon(Hung), "", Outdated, planFence, false, "the secondary is up to date: a hung primary is killed so that it can go on"},
		{on(Protected), upon(DiskFailed), guardStays, same, "", false, "the guest goes on through the peer's disk; its owner wants no switchover"},
		{on(Protected), upon(DiskFailed), "", SwitchingOver, planSwitchover, false, "the guest goes on through the peer's disk, and then next to it"},
		{on(SwitchingOver), upon(PlanError), guardHalfGone, Outdated, planFence, false, "the secondary has every write and a good disk: it goes on"},
		{on(Secondary), upon(DiskFailed), "", Outdated, planFence, false, "the primary goes on alone; it is told that this copy is dead"},
		{on(Detaching), upon(DiskFailed), guardHalfGone, SwitchingOver, planSwitchover, false, "alone it would have no disk: the peer goes on"},
		{on(Starting, Solo, Syncing, Attaching, Detaching, SwitchingOver, Standby, Arbitrating, FailingOver, Stopping, Stopped, Outdated, Failed), upon(DiskFailed),
			"", same, "", false, "there is no better copy to go on with"},

		// Planned changes of a protected VM.
		{on(Protected), upon(ReqUnprotect, GuestShutdown), guardHalfGone, SwitchingOver, planSwitchover, false, "alone it would have no disk: the peer goes on"},
		{on(Protected), upon(ReqUnprotect), "", Detaching, planDetach, false, ""},
		{on(Protected), upon(GuestShutdown), "", Detaching, planDetach, false, "the owner has switched the VM off: it ends as a lone copy"},
		{on(Detaching), upon(Done), "", Solo, "", false, ""},
		{on(Detaching), upon(PlanError), guardFinal, Arbitrating, planClaim, false, "the guest is off and stays so: asked again until it is known whose disks count"},
		{on(Detaching), upon(PlanError), "", Protected, "", false, "nothing was changed"},
		{on(Detaching), upon(Undecided), "", Arbitrating, planClaim, false, "the arbiter did not answer in the middle"},
		{on(Detaching, SwitchingOver), upon(Lost), "", Outdated, planFence, false, "the peer has gone on by itself"},
		{on(Detaching), upon(ChannelLost, PeerLost, PeerDead), guardCounted, Arbitrating, planClaim, false, "the peer was lost before it was counted out"},
		{on(Detaching), upon(ChannelLost, PeerLost, PeerDead), "", same, "", false, "expected: the secondary is being dropped"},
		{on(Protected), upon(ReqSwitchover), "", SwitchingOver, planSwitchover, false, ""},
		{on(SwitchingOver), upon(Done), "", Outdated, "", false, "the peer runs the VM now"},
		{on(SwitchingOver), upon(PlanError), "", Protected, "", false, "refused or undone before the roles were exchanged"},
		{on(SwitchingOver), upon(Undecided), "", Arbitrating, planClaim, false, "the arbiter did not answer in the middle"},
		{on(SwitchingOver), upon(ChannelLost, PeerLost, PeerDead), "", Arbitrating, planClaim, true, "the peer was lost in the middle"},

		// The other side.
		{on(Stopped, Outdated, Standby, Failed), upon(ReqPrepare), "", Standby, planPrepare, true, "the primary wants to be protected by this node"},
		{on(Standby), upon(Done), "", same, "", false, "prepared: the primary may connect"},
		{on(Standby), upon(PlanError), "", Outdated, planFence, false, "no standby could be prepared"},
		{on(Standby), upon(ColoStarted), "", Secondary, "", false, ""},
		{on(Standby, Secondary), upon(ReqDrop), "", Outdated, planFence, true, "the primary goes on alone"},
		{on(Standby), upon(PeerLost, PeerDead, ChannelLost, Hung), "", Outdated, planFence, true, "the primary will ask for a new standby"},
		{on(Standby), upon(Exited), "", Outdated, "", true, ""},
		{on(Secondary), upon(ChannelLost, PeerDead), "", Arbitrating, planClaim, false, "the replication channel is gone"},
		{on(Secondary), upon(PeerLost), guardSilent, Arbitrating, planClaim, false, "neither heartbeat nor checkpoints"},
		{on(Secondary), upon(PeerLost), "", same, "", false, "checkpoints arrive: only the peer's daemon is silent"},
		{on(Secondary), upon(ReqTakeOver), "", FailingOver, planPromote, false, "the primary has handed over and is dead"},
		{on(Secondary), upon(Exited), "", Outdated, planFence, false, "the primary is told that this copy is dead"},
		{on(Secondary), upon(Hung), "", Outdated, planFence, false, "the primary holds its output for a hung copy: better none"},
		{on(Secondary), upon(GuestShutdown), "", same, "", false, "the primary decides"},

		// Who goes on.
		{on(Arbitrating), upon(Done), guardHalfGone, Outdated, planFence, false, "won without a disk: the VM is handed to the peer, whose half has everything"},
		{on(Arbitrating), upon(Done), guardFinal, Stopping, planStop, false, "won, and the guest is off"},
		{on(Arbitrating), upon(Done), "", FailingOver, planSurvive, false, "won"},
		{on(Arbitrating), upon(Lost), "", Outdated, planFence, false, "the other copy goes on: this one must never speak again"},
		{on(Arbitrating), upon(Revived), guardSecondary, Secondary, "", false, "silence was the only sign, and it was wrong"},
		{on(Arbitrating), upon(Revived), "", Protected, "", false, "silence was the only sign, and it was wrong; the tap is joined again"},
		{on(Arbitrating), upon(CopyDead), "", Outdated, planFence, false, "nothing is claimed for a dead copy; the peer is told"},
		{on(Arbitrating), upon(Undecided), "", Arbitrating, planClaim, false, "held: nobody may go on without the arbiter's word"},
		{on(Arbitrating), upon(PlanError), "", Failed, planFence, false, "the copy could not be silenced"},
		{on(Arbitrating), upon(PeerDead, PeerLost, ChannelLost, GuestShutdown, Hung), "", same, "", false, "the claim is under way"},
		{on(Arbitrating, FailingOver, Protected, Detaching, SwitchingOver), upon(ColoStarted), "", same, "", false, "heard late: what it has led to is known already"},
		{on(Arbitrating), upon(ReqDrop), "", Outdated, planFence, true, "the primary has gone on alone"},
		{on(Arbitrating), upon(ReqTakeOver), "", FailingOver, planPromote, true, "the primary has handed over and is dead"},
		{on(Arbitrating), upon(ReqForce), "", FailingOver, planSurvive, true, "a person vouches that the other copy is dead"},
		{on(Arbitrating), upon(ReqStop), "", Stopped, planFence, true, "a person ends the copy; whose disks count stays as it is"},
		{on(Arbitrating), upon(Exited), guardWhole, Stopped, "", true, "it had won already; its disks are current"},
		{on(Arbitrating), upon(Exited), guardFinal, same, "", false, "the disks are complete without it: the claim goes on"},
		{on(Arbitrating), upon(Exited), "", Outdated, planFence, true, "this copy ended while the claim was under way"},
		{on(FailingOver), upon(Done), "", Solo, "", false, "goes on alone"},
		{on(FailingOver), upon(Lost), "", Outdated, planFence, false, "the arbiter lets the other copy go on: this one must never speak again"},
		{on(FailingOver), upon(ReqForce), "", same, "", false, "a person vouches for it: no note is waited for any more"},
		{on(FailingOver), upon(PlanError), guardFinal, Stopping, planStop, false, "the guest is off: nothing is left to go on"},
		{on(FailingOver), upon(PlanError), guardHalfGone, Outdated, planFence, false, "it has no disk: the VM is handed to the peer, whose half has everything"},
		{on(FailingOver), upon(PlanError), "", Failed, "", false, "left as it is: it holds the only current data"},
		{on(FailingOver), upon(PeerDead, PeerLost, ChannelLost, GuestShutdown, ReqTakeOver, Hung), "", same, "", false, "already going on"},
		{on(FailingOver), upon(Exited), guardWhole, Stopped, "", true, "the surviving copy ended; its disks are current"},
		{on(FailingOver), upon(Exited), guardHalfGone, Outdated, planFence, true, "it had no disk of its own any more: the peer's half has everything"},
		{on(FailingOver), upon(Exited), "", Failed, "", true, "the surviving copy ended"},
		{on(Failed), upon(ReqForce), "", FailingOver, planSurvive, false, "a person wants it tried again"},
		{on(Failed), upon(ReqStop), "", Stopping, planStop, false, ""},
		{on(Solo), upon(ReqTakeOver), "", same, "", false, "goes on already"},
		{on(Stopped, Outdated), upon(ReqTakeOver), "", Stopped, "", false, "the peer has handed its role over: the disks here are current"},

		// Late news that changes nothing.
		{on(Stopped, Outdated, Failed, Solo, Starting, Stopping), upon(PeerLost, PeerDead, ChannelLost, ColoStarted), "", same, "", false, "no longer of interest"},
		{on(Stopped, Outdated), upon(Exited, Hung, GuestShutdown, ReqDrop, ReqStop), "", same, "", false, "nothing runs here"},
		{on(Failed), upon(Exited, Hung, GuestShutdown, ReqDrop), "", same, "", false, "a person decides"},
		{on(Stopped, Outdated, Failed, Solo), upon(PlanError, UndoFailed, Lost, Undecided, CopyDead, Revived, Done), "", same, "", false, "the end of a plan that was given up"},
		{on(Starting, Syncing, Attaching, Detaching, SwitchingOver, Stopping, Standby), upon(GuestShutdown), "", same, "", false, "the running plan finds out"},
		{on(Detaching, SwitchingOver, Stopping), upon(Hung), "", same, "", false, "the running plan has its own deadline"},
		{on(Stopped, Outdated), upon(ReqDelete), "", same, planDelete, false, "the VM is forgotten"},
		{on(Failed), upon(ReqDelete), guardNoQEMU, same, planDelete, false, "the VM is forgotten"},
		{on(Stopped, Outdated, Solo), upon(ReqEdit), "", same, planEdit, false, "its spec is changed"},
		{on(Solo), upon(ReqUnprotect), "", same, "", false, "already alone"},
		{on(Protected), upon(ReqProtect), "", same, "", false, "already protected"},
	})
)

func expand(rows []row) []Transition {
	var out []Transition
	for _, r := range rows {
		for _, from := range r.from {
			for _, ev := range r.event {
				to := r.to
				if to == same {
					to = from
				}
				out = append(out, Transition{from, ev, r.guard, to, r.plan, r.cancel, r.why})
			}
		}
	}
	return out
}

// Transitions returns the whole table, in its order. For one state and event the first row whose guard holds is taken.
func Transitions() []Transition { return slices.Clone(table) }

// UnexpectedEventError says that the table has no row for an event in a state. For a request that means it is refused.
type UnexpectedEventError struct {
	VM    string
	State State
	Event EventKind
}

func (e *UnexpectedEventError) Error() string {
	return fmt.Sprintf("%s: %q is not possible while %s", e.VM, e.Event, e.State)
}

// next finds the row for an event.
func next(from State, ev EventKind, holds func(guard string) bool) (Transition, bool) {
	for _, t := range table {
		if t.From == from && t.Event == ev && (t.Guard == "" || holds(t.Guard)) {
			return t, true
		}
	}
	return Transition{}, false
}

// WriteDot writes the state machine as a Graphviz graph. Rows that keep the state and start no plan are left out.
func WriteDot(w io.Writer) error {
	var b strings.Builder
	b.WriteString("digraph vm {\n\trankdir=LR;\n\tnode [shape=box, style=rounded];\n")
	type edge struct{ from, to State }
	labels, order := map[edge][]string{}, []edge(nil)
	for _, t := range table {
		if t.From == t.To && t.Plan == "" {
			continue
		}
		e, l := edge{t.From, t.To}, string(t.Event)
		if t.Guard != "" {
			l += " [" + t.Guard + "]"
		}
		if t.Plan != "" {
			l += " / " + string(t.Plan)
		}
		if labels[e] == nil {
			order = append(order, e)
		}
		labels[e] = append(labels[e], l)
	}
	for _, e := range order {
		fmt.Fprintf(&b, "\t%q -> %q [label=%q];\n", e.from, e.to, strings.Join(labels[e], "\n"))
	}
	b.WriteString("}\n")
	_, err := io.WriteString(w, b.String())
	return err
}
