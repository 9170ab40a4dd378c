package colo

import "time"

// After an outage a node starts its VMs one after the other, by priority. Each VM's own goroutine decides whether it may start; here it looks whether one of a higher priority has
// yet to. Nobody waits for a VM that is not going to be started here, has been tried, or was given up.

// coldPhase is how far the node has come with a VM that should run and does not.
type coldPhase int

const (
	coldUnknown coldPhase = iota // not decided yet
	coldGoes                     // it is going to be started here, by itself
	coldStays                    // it is not: something else has to happen first
	coldTried                    // it was started, or that has failed
)

// before says whether one VM is started before another.
func before(a, b *Spec) bool {
	if a.Priority != b.Priority {
		return a.Priority > b.Priority
	}
	return a.Name < b.Name
}

// startsAfter notes what was decided for the VM, and names one that has to be started before it; empty if there is none.
func (m *machine) startsAfter(a coldAction) string {
	if a != coldStart && a != coldAgree {
		m.setCold(coldStays)
		return ""
	}
	m.mu.Lock()
	if m.cold != coldTried {
		m.cold = coldGoes
	}
	spec := m.spec
	m.mu.Unlock()
	for _, o := range m.n.all() {
		if o != m && o.startsFirst(spec) {
			return o.name
		}
	}
	return ""
}

// startsFirst says whether this VM is to be started before one with the given spec, and that has not been tried yet.
func (m *machine) startsFirst(than *Spec) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !before(m.spec, than) || m.givenUp != "" {
		return false
	}
	switch m.state {
	case Starting:
		return true
	case Stopped, Outdated:
		wanted := m.rec.Want == WantRunning || m.rec.Want == WantProtected
		return wanted && (m.cold == coldUnknown || m.cold == coldGoes)
	}
	return false
}

func (m *machine) setCold(p coldPhase) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cold = p
}

// protectsAfter says whether another VM, of a higher priority, is to be protected again before this one: it could be asked for as well, and has not been yet. So the queue for resyncs gets them
// in their order also when a peer returns that all of them have waited for.
func (m *machine) protectsAfter(holdDown time.Duration) bool {
	_, spec := m.info()
	for _, o := range m.n.all() {
		if o != m && o.protectsFirst(spec, holdDown) {
			return true
		}
	}
	return false
}

func (m *machine) protectsFirst(than *Spec, holdDown time.Duration) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return before(m.spec, than) && m.state == Solo && m.rec.Want == WantProtected && m.givenUp == "" && !m.tried && time.Since(m.since) >= holdDown
}

// setTried notes that protecting the VM again has failed: others don't wait for the next attempt.
func (m *machine) setTried(tried bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tried = tried
}
