package colo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/state"
)

// What the owner of a VM wants of it. It is stored, and survives every reboot.
const (
	WantStopped   = "stopped"
	WantRunning   = "running"   // somewhere, protected or not
	WantProtected = "protected" // running, with a secondary whenever there is a peer for it
)

// Recovery makes a node bring its VMs by itself to what their owners want: it starts them after an outage when that is safe, and protects them
// again when a lost peer has come back. Zero values are replaced by the defaults.
type Recovery struct {
	HoldDown     time.Duration // how long a peer must have been well before a VM is protected by it again; 5s
	PrimaryFirst time.Duration // how long a last secondary lets the last primary start first after both were down; 10s
	Attempts     int           // failures within Window after which a person is needed; 5
	Window       time.Duration // 10m
}

func (r *Recovery) setDefaults() {
	setDefault(&r.HoldDown, 5*time.Second)
	setDefault(&r.PrimaryFirst, 10*time.Second)
	setDefault(&r.Attempts, 5)
	setDefault(&r.Window, 10*time.Minute)
}

// breaker stops what fails again and again.
type breaker struct {
	limit  int
	window time.Duration
	fails  []time.Time
}

// note counts a failure, and says whether that was one too many.
func (b *breaker) note(now time.Time) bool {
	b.fails = slices.DeleteFunc(append(b.fails, now), func(t time.Time) bool { return now.Sub(t) > b.window })
	return len(b.fails) >= b.limit
}

// want stores what the owner asked for.
func (m *machine) want(ctx context.Context, w string) error {
	m.reset()
	if rec, _ := m.info(); rec.Want == w {
		return nil
	}
	return m.updateNow(ctx, func(v *state.VM) { v.Want = w })
}

// wanting stores what the owner asks for before it is done: the keeper must not work against it meanwhile. What is not possible here is not wanted either.
func (m *machine) wanting(ctx context.Context, w string, kind EventKind, do func() error) error {
	if err := m.ping(ctx); err != nil { // a node that has just started knows only then what runs on it
		return err
	}
	s := m.State()
	if _, ok := next(s, kind, m.holds); !ok {
		return &UnexpectedEventError{VM: m.name, State: s, Event: kind}
	}
	was, _ := m.info()
	if err := m.want(ctx, w); err != nil {
		return err
	}
	err := do()
	var refused *UnexpectedEventError
	if errors.As(err, &refused) && !errors.As(err, new(*StepError)) && was.Want != w { // its state has changed in between
		return errors.Join(err, m.want(context.WithoutCancel(ctx), was.Want))
	}
	return err
}

// reset makes the keeper try again what it has given up.
func (m *machine) reset() {
	m.mu.Lock()
	m.givenUp, m.resets = "", m.resets+1
	m.wake()
	m.mu.Unlock()
}

// keep is the goroutine that brings the VM to what its owner wants.
func (m *machine) keep(ctx context.Context, r Recovery) {
	var (
		failed  = breaker{limit: r.Attempts, window: r.Window}
		resets  int
		peers   = standing{map[string]time.Time{}, map[string]time.Time{}}
		waits   bool // for another candidate, and says so
		decides = time.Now()
		last    string
		tick    = time.NewTicker(500 * time.Millisecond)
	)
	defer tick.Stop()
	select { // who is started first can be told when all are known
	case <-m.n.loaded:
	case <-ctx.Done():
		return
	}
	for {
		m.mu.Lock()
		changed, s, want, givenUp, again := m.changed, m.state, m.rec.Want, m.givenUp, m.resets
		m.mu.Unlock()
		if again != resets {
			resets, failed.fails = again, nil
		}
		now := time.Now()
		peers.look(m.n.partnerships(), now)
		var err error
		var by string
		if s == Solo && want == WantProtected && givenUp == "" {
			var why string
			by, why = m.wellPeer(&peers, now, r.HoldDown)
			if why != "" || waits {
				m.setOutlook(why)
			}
			waits = why != ""
		}
		switch {
		case givenUp != "":
		case s == Solo && want == WantProtected && by != "" && now.Sub(m.inState()) >= r.HoldDown:
			if m.protectsAfter(r.HoldDown) {
				break
			}
			if err = m.request(ctx, ReqProtect, ProtectOptions{Node: by}); err != nil {
				err = fmt.Errorf("protecting it again: %w", err)
				m.setTried(true)
				peers.refused[by] = time.Now()
			}
		case (s == Stopped || s == Outdated) && (want == WantRunning || want == WantProtected):
			action, why := decideCold(m.coldFacts(ctx, r, now.Sub(decides)))
			if why != last {
				last = why
				m.log.Info("cold start", "decision", action, "why", why)
				m.emit(Event{Kind: "decision", State: s, Text: joinText(string(action), why), Fields: map[string]any{"decision": action}})
			}
			if first := m.startsAfter(action); first != "" {
				m.setOutlook("wait: " + first + " is started first, its priority is higher")
				break
			}
			m.setOutlook(string(action) + ": " + why) // a change of state has taken the one of before away
			err = m.carryOut(ctx, action)
			if action == coldStart || action == coldAgree {
				m.setCold(coldTried)
			}
		default:
			last = ""
			m.setCold(coldUnknown)
		}
		var unexpected *UnexpectedEventError
		away := errors.Is(err, arbiter.ErrUnreachable) || errors.Is(err, ErrPeerUnreachable) // comes back by itself
		away = away || errors.Is(err, ErrBackupRuns)
		// Until the way is shorter again, another VM has gone, or a person brings the disk back, in minutes or in weeks.
		if errors.Is(err, ErrTooFar) || errors.Is(err, ErrNoRoom) || errors.Is(err, ErrDiskOffline) {
			away = true
			m.setOutlook("wait: " + err.Error())
		}
		if err != nil && ctx.Err() == nil && !away && !errors.As(err, &unexpected) {
			if failed.note(now) {
				m.giveUp(fmt.Sprintf("given up after %d failures within %s, a person is needed: %v", r.Attempts, r.Window, err))
			}
		}
		select {
		case <-tick.C:
		case <-changed:
		case <-m.quit:
			return
		case <-ctx.Done():
			return
		}
		if err != nil { // not in a tight loop
			select {
			case <-time.After(r.HoldDown):
			case <-ctx.Done():
				return
			}
		}
	}
}

func (m *machine) carryOut(ctx context.Context, a coldAction) error {
	switch a {
	case coldAgree:
		if err := m.agree(ctx); err != nil {
			return fmt.Errorf("asking the peer to give way: %w", err)
		}
		return m.request(ctx, ReqStart, nil)
	case coldRest:
		return m.want(ctx, WantStopped)
	case coldStart:
		if err := m.request(ctx, ReqStart, nil); err != nil && !errors.Is(err, errUndecided) {
			return fmt.Errorf("starting it: %w", err)
		}
	}
	return nil
}

// agree makes the peer promise that its copy, which is as good as this one, stays down. It is the proof that stands in for an arbiter.
func (m *machine) agree(ctx context.Context) error {
	p, _, err := m.partner()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	rec, _ := m.info()
	next := arbiter.Record{VM: rec.ID, Generation: rec.Generation + 1, Members: []string{m.n.cfg.Name}, By: m.n.cfg.Name}
	if err := p.Drop(ctx, DropRequest{Record: next}); err != nil {
		return err
	}
	return m.updateNow(ctx, setRecord(next.Generation, next.Members))
}

func (m *machine) coldFacts(ctx context.Context, r Recovery, waited time.Duration) coldFacts {
	rec, spec := m.info()
	f := coldFacts{me: m.n.cfg.Name, rec: rec, disks: len(incomplete(rec, spec)) == 0 && len(offline(rec)) == 0, waited: waited, order: r.PrimaryFirst}
	if m.n.cfg.Arbiter != nil {
		held, err := m.held(ctx)
		switch {
		case err == nil:
			f.answer, f.held = arbiterHolds, held
		case errors.Is(err, arbiter.ErrNoRecord):
			f.answer = emptyArbiter
		default:
			f.answer = silentArbiter
		}
	}
	if p, info, err := m.partner(); err == nil {
		f.peer = info.Name
		pctx, cancel := context.WithTimeout(ctx, time.Second)
		there, err := p.Inquire(pctx, m.name)
		cancel()
		f.heard, f.peerHas, f.there = err == nil || errors.Is(err, ErrNoVM), err == nil, there
	}
	for _, e := range m.inquireAll(ctx, m.others()) { // a copy that has taken the peer's place is the one that counts
		if e.err == nil && !f.there.runs() && (e.runs() || e.vm.Generation > max(rec.Generation, f.there.Generation)) {
			f.peer, f.heard, f.peerHas, f.there = e.info.Name, true, true, e.vm
		}
	}
	return f
}

func (m *machine) inState() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.since
}

func (m *machine) giveUp(why string) {
	m.mu.Lock()
	m.givenUp = why
	m.wake()
	s := m.state
	m.mu.Unlock()
	m.log.Error("recovery", "err", why)
	m.emit(Event{Kind: "recovery", State: s, Text: why})
}

func (m *machine) setOutlook(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.outlook != text {
		m.outlook = text
		m.wake()
	}
}
