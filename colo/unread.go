package colo

import "fmt"

// A VM whose stored spec can't be read, as after a step back to an older version, is failed, and nothing is begun for it. A QEMU of its that runs is left alone: it may be the only
// current copy, and nobody knows what it should be like. A version that can read the spec takes it up where it is; this one can only end it, by a person's word.

// unreadable says why the VM's stored spec can't be read; nil when it was.
func (m *machine) unreadable() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unread
}

// refused is an error for what needs the spec, while that can't be read. Where a QEMU runs everything does but its end.
func (m *machine) refused(kind EventKind, args any) error {
	m.mu.Lock()
	why, s, runs := m.unread, m.state, m.rec.Instance != nil
	m.mu.Unlock()
	if why == nil {
		return nil
	}
	switch kind {
	case ReqStop:
		if o, _ := args.(StopOptions); o.Force || !runs {
			return nil
		}
		why = fmt.Errorf("%w; only --force ends its QEMU", why)
	case ReqPrepare, ReqEdit, ReqDelete, ReqDrop, ReqTakeOver: // the first two bring a new one
		if !runs {
			return nil
		}
	case ReqStart, ReqForce, ReqProtect, ReqUnprotect, ReqSwitchover:
	default:
		return nil
	}
	return fmt.Errorf("%w: %w", &UnexpectedEventError{VM: m.name, State: s, Event: kind}, why)
}

// unseen says whether a QEMU of the VM may run here that this node can't ask, and leaves alone.
func (m *machine) unseen() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state == Failed && m.copy == nil && m.rec.Instance != nil && !m.exited
}
