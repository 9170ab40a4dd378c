package colo

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/coloctl/coloctl/state"
)

// marks are what the machine remembers of how it came into arbitration. Guarded by machine.mu.
type marks struct {
	proof     bool      // the peer's node says that its copy is dead
	proven    uint64    // the generation in which it was one of two
	forced    bool      // a person says so
	overrule  bool      // and accepts the loss of what another copy wrote
	unnoted   bool      // a person doesn't want the winner's note to be waited for
	heartbeat bool      // silence is the only sign of the loss
	claims    int       // attempts so far
	asked     bool      // the arbiter may have been changed by one of them
	since     time.Time // the last sign of the loss
	secondary bool      // this copy was the secondary
	deferred  time.Time // when the primary last had the chance to claim first
	yield     bool      // this copy ended by itself: the peer is to be told
	cut       bool      // its tap is out of the bridge
}

// note keeps what later plans need to know of a transition.
func (m *machine) note(t Transition, gen uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := &m.marks
	switch {
	case t.To == Arbitrating && t.From != Arbitrating:
		*k = marks{heartbeat: t.Event == PeerLost && t.Plan == planClaim && (t.From == Protected || t.From == Secondary), secondary: t.From == Secondary, since: time.Now()}
	case t.Plan == planClaim:
		k.claims++
	case t.To == FailingOver && t.From == Secondary:
		*k = marks{secondary: true}
	}
	if t.Event == ChannelLost || t.Event == PeerDead {
		k.heartbeat, k.since = false, time.Now() // silence is not the only sign any more
	}
	switch t.Event {
	case PeerDead:
		k.proof, k.proven = true, max(k.proven, gen)
		m.wake()
	case ReqForce:
		if t.From == FailingOver {
			k.unnoted = true
		} else {
			k.forced = true
		}
	}
	if t.To == t.From && t.Plan == "" {
		return // what is to follow stays as it is
	}
	k.yield = t.Event == Exited || t.Event == Hung || t.Event == CopyDead || t.Event == DiskFailed || (t.From == SwitchingOver && t.Event == PlanError && t.Plan == planFence)
}

func (m *machine) marked() marks {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.marks
}

// wake tells those who wait for a change. The caller holds mu.
func (m *machine) wake() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// State returns where the machine is.
func (m *machine) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

func (m *machine) setState(s State, why string) {
	m.mu.Lock()
	old := m.state
	m.state, m.why, m.since, m.outlook = s, why, time.Now(), ""
	switch s {
	case Solo, Stopped, Outdated:
		m.prog = nil
		m.tune.paused = false // a pause ends with the resync; a limit counts for the next one too
	case Protected:
		m.tune, m.tried = resyncTuning{}, false
	}
	if (s == Protected || s == Secondary) && old != Detaching && old != SwitchingOver { // what went wrong on the way here is over; these two have just failed
		m.lastErr, m.failed = "", ""
	}
	gen := m.rec.Generation
	m.wake()
	m.mu.Unlock()
	m.log.Info("state", "from", old, "to", s, "why", why, "generation", gen)
	m.emit(Event{Kind: "state", State: s, Text: why, Fields: map[string]any{"from": old, "generation": gen}})
	m.n.ledger.write(func(tx RecordsTx) error {
		if err := tx.Update(m.name, func(v *state.VM) error { v.Phase, v.Reason = string(s), why; return nil }); err != nil {
			return err
		}
		_, err := tx.Append(state.Entry{VM: m.name, Kind: "state", Text: joinText(string(s), why), Generation: gen})
		return err
	})
}

func (m *machine) emit(e Event) {
	e.Time, e.Node, e.VM = time.Now(), m.n.cfg.Name, m.name
	m.n.events.send(e)
}

func (m *machine) isCopy(c Copy) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.copy == c && m.silent == nil
}

func (m *machine) setCopy(c Copy) {
	m.mu.Lock()
	m.copy, m.silent, m.exited = c, nil, c == nil
	m.wake()
	m.mu.Unlock()
}

// noCopy says whether it is certain that no copy runs here.
func (m *machine) noCopy() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.copy == nil && (m.rec.Instance == nil || m.exited)
}

// endsNow makes what the copy does from here on no event, until setCopy or endsNot. Call what it returns when the copy has become silent.
func (m *machine) endsNow() (silenced func()) {
	silent := make(chan struct{})
	m.mu.Lock()
	m.silent = silent
	m.mu.Unlock()
	return sync.OnceFunc(func() { close(silent) })
}

// endsNot takes endsNow back.
func (m *machine) endsNot() {
	m.mu.Lock()
	m.silent = nil
	m.mu.Unlock()
}

// ends returns what is closed when the copy that is being ended has become silent; nil when none is.
func (m *machine) ends() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.silent
}

// current returns the copy that runs here, or nil.
func (m *machine) current() Copy {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.copy
}

func (m *machine) setPlan(p *PlanStatus) {
	m.mu.Lock()
	m.plan = p
	m.wake()
	m.mu.Unlock()
}

func (m *machine) setLastErr(kind PlanKind, err error) {
	m.mu.Lock()
	m.lastErr, m.failed = err.Error(), kind
	m.mu.Unlock()
	m.log.Warn("plan ended with an error", "err", err)
	m.emit(Event{Kind: "step", State: m.State(), Text: err.Error()})
}

// mended forgets the last error when the plan that it was of has ended well, or a stop, after which nothing of before counts.
func (m *machine) mended(kind PlanKind) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if kind == m.failed || kind == planStop {
		m.lastErr, m.failed = "", ""
	}
}

func (m *machine) setProgress(p Progress) {
	m.mu.Lock()
	p.Limit, p.Paused = m.tune.speed(m.spec), m.tune.paused
	m.prog = &p
	s := m.state
	m.wake()
	m.mu.Unlock()
	m.emit(Event{Kind: "progress", State: s, Text: p.What, Fields: map[string]any{"done": p.Done, "total": p.Total, "rate": p.Rate}})
}

// update changes what the node remembers of the VM, at once in memory and in order in the store, without waiting for the disk.
func (m *machine) update(do func(v *state.VM)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	do(&m.rec)
	m.wake()
	if len(m.queue) > 0 { // it is to be what counts after those as well
		m.queue = append(m.queue, &change{do: do, made: true})
	}
	m.n.ledger.write(m.storing(do))
}

// updateNow is update that returns when the change is durable, and makes it known only then. When ctx ends before, it is made all the same.
func (m *machine) updateNow(ctx context.Context, do func(v *state.VM)) error {
	c := &change{do: do}
	m.mu.Lock()
	wait := m.n.ledger.begin(m.storing(do), func(err error) { m.stored(c, err) })
	if wait == nil {
		m.mu.Unlock()
		return errLedgerFull
	}
	m.queue = append(m.queue, c)
	m.mu.Unlock()
	return wait(ctx)
}

// change is one to the record. Changes only set fields to values, so doing one again does no harm.
type change struct {
	do   func(*state.VM)
	made bool // in memory
}

// stored makes a change in memory that the store has taken, in the store's order: those of later are made again after it.
func (m *machine) stored(c *change, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.Index(m.queue, c)
	if err == nil {
		c.do(&m.rec)
		for _, later := range m.queue[i+1:] {
			if later.made {
				later.do(&m.rec)
			}
		}
	}
	m.queue = slices.Delete(m.queue, i, i+1)
	for len(m.queue) > 0 && m.queue[0].made {
		m.queue = m.queue[1:]
	}
	m.wake()
}

func (m *machine) storing(change func(v *state.VM)) func(RecordsTx) error {
	return func(tx RecordsTx) error {
		return tx.Update(m.name, func(v *state.VM) error { change(v); return nil })
	}
}

// info returns a copy of the stored record and the spec.
func (m *machine) info() (state.VM, *Spec) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rec.Clone(), m.spec
}

// setRecord makes a record of the arbiter this node's own.
func setRecord(generation uint64, members []string) func(*state.VM) {
	members = slices.Clone(members)
	return func(v *state.VM) {
		if generation > v.Generation {
			v.Vouched = 0
		}
		if generation >= v.Generation {
			v.Generation, v.Members, v.Offered = generation, members, ""
		}
	}
}

// setDisks marks every disk of the VM.
func setDisks(spec *Spec, inSync bool, generation uint64) func(*state.VM) {
	return func(v *state.VM) {
		if v.Disks == nil {
			v.Disks = map[string]state.Disk{}
		}
		for _, d := range spec.mirrored() {
			e := v.Disks[d.Name]
			e.InSync, e.Behind, e.Size = inSync && e.Offline == "", false, int64(d.Size)
			e.Generation = max(e.Generation, generation)
			v.Disks[d.Name] = e
		}
	}
}

// setWritten notes whether a copy of this node's own has written to the disks since they were equal to a primary's.
func setWritten(spec *Spec, written bool) func(*state.VM) {
	return func(v *state.VM) {
		for _, d := range spec.mirrored() {
			if e, ok := v.Disks[d.Name]; ok {
				e.Written = written
				v.Disks[d.Name] = e
			}
		}
		if written {
			v.Target = ""
		}
	}
}

// aloneIn says whether no other node's copy can be current, as far as this node knows.
func aloneIn(rec state.VM, node string) bool {
	return slices.Equal(rec.Members, []string{node}) && rec.Offered == ""
}

// incomplete names the disks here that are known to lack data.
func incomplete(rec state.VM, spec *Spec) []string {
	var names []string
	for _, d := range spec.mirrored() {
		if s, ok := rec.Disks[d.Name]; ok && !s.InSync {
			names = append(names, d.Name)
		}
	}
	return names
}

// both applies two changes as one.
func both(a, b func(*state.VM)) func(*state.VM) { return func(v *state.VM) { a(v); b(v) } }
