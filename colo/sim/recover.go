package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo"
)

// states returns where the machines are.
func (r *run) states() (out [2]colo.Status, ok bool) {
	for i, h := range r.w.hosts {
		n := h.node()
		if n == nil {
			return out, false
		}
		// A context that is over: the verdict, which would ask the arbiter, is not wanted.
		ctx, cancel := context.WithCancel(r.ctx)
		cancel()
		s, err := n.Status(ctx, vm)
		if err != nil {
			s = colo.Status{State: colo.Outdated, Why: err.Error()} // it has never heard of the VM
		}
		out[i] = s
	}
	return out, true
}

// held says whether a node waits for a person: without an arbiter it can't know whether the other copy goes on.
func (r *run) held(s colo.Status) bool { return r.sch.NoArbiter && s.State == colo.Arbitrating }

// settled says whether the nodes could stay as they are.
func (r *run) settled(s [2]colo.Status) bool {
	for i := range s {
		if r.held(s[i]) && runner(s) < 0 {
			continue
		}
		switch s[i].State {
		case colo.Stopped, colo.Outdated, colo.Failed:
			if len(s[i].Disks) > 0 && s[i].Disks[0].Offline != "" && slices.Contains(s[i].Members, fmt.Sprintf("n%d", i+1)) {
				return false // it is still to hand the VM to the one with the newer half
			}
		case colo.Solo:
		case colo.Standby: // left behind by a primary that could not say so; its next attempt drops it
			if p := s[1-i].State; p == colo.Syncing || p == colo.Attaching {
				return false
			}
		case colo.Protected:
			if s[1-i].State != colo.Secondary && s[1-i].State != colo.Failed {
				return false
			}
		case colo.Secondary:
			if s[1-i].State != colo.Protected && s[1-i].State != colo.Failed {
				return false
			}
		default:
			return false
		}
		if s[i].Plan != nil {
			return false
		}
	}
	return true
}

// wanting says whether a node is still about to do something by itself for what its owner wants.
func wanting(s [2]colo.Status) bool {
	for i := range s {
		if s[i].GivenUp != "" || s[i].Want == colo.WantStopped || s[i].Want == "" {
			continue
		}
		switch s[i].State {
		case colo.Solo:
			if s[i].Want == colo.WantProtected && !strings.HasPrefix(s[i].Outlook, "wait") {
				return true
			}
		case colo.Stopped, colo.Outdated: // it may also hold, or wait for what never comes: then it says so
			if runner(s) < 0 && !strings.HasPrefix(s[i].Outlook, "hold") && !strings.HasPrefix(s[i].Outlook, "wait") {
				return true
			}
		}
	}
	return false
}

func describe(s [2]colo.Status) string {
	text := ""
	for i := range s {
		text += fmt.Sprintf("n%d is %s (%s) at generation %d of %v", i+1, s[i].State, s[i].Why, s[i].Generation, s[i].Members)
		if s[i].Outlook != "" || s[i].GivenUp != "" {
			text += fmt.Sprintf(" [wanted %s: %s%s]", s[i].Want, s[i].Outlook, s[i].GivenUp)
		}
		if s[i].Plan != nil {
			text += fmt.Sprintf(", at step %q of %s", s[i].Plan.Step, s[i].Plan.Kind)
		}
		text += "; "
	}
	return text
}

// settle waits until both nodes have come to rest.
func (r *run) settle() ([2]colo.Status, bool) {
	var last [2]colo.Status
	var since time.Time
	ok := r.untilEvery(45*time.Second, 150*time.Millisecond, func() bool {
		s, ok := r.states()
		if !ok || !r.settled(s) && r.stranded(s) < 0 || r.sch.Recovery && wanting(s) {
			since = time.Time{}
			last = s
			return false
		}
		if since.IsZero() || s[0].State != last[0].State || s[1].State != last[1].State {
			since, last = time.Now(), s
		}
		if r.sch.Recovery && runner(s) < 0 { // one that was the secondary lets the other one go first
			return time.Since(since) > 5*time.Second
		}
		if r.held(s[0]) || r.held(s[1]) { // longer than a call takes that nobody answers
			return time.Since(since) > 8*time.Second
		}
		return time.Since(since) > 1200*time.Millisecond
	})
	if !ok && !r.w.broke() {
		r.fail("the nodes don't come to rest: %s", describe(last))
	}
	return last, ok
}

// vouch is a person who lets a copy that is held go on, after the other host was powered off.
func (r *run) vouch(s [2]colo.Status) ([2]colo.Status, bool) {
	for i, h := range r.w.hosts {
		if !r.held(s[i]) || !r.giveUp(h) {
			continue
		}
		ctx, cancel := context.WithTimeout(r.ctx, 20*time.Second)
		err := h.node().Force(ctx, vm)
		cancel()
		if err != nil {
			r.fail("n%d can't be made to go on although the other host is off: %v", i+1, err)
			return s, false
		}
		r.plugIn()
		s, ok := r.settle()
		r.w.tell("=", "at rest by a person's word: %s", describe(s))
		return s, ok
	}
	r.fail("there is no copy of which a person could say that it may go on: %s", describe(s))
	return s, false
}

// heal takes halves of disks back into service. A primary that runs on without its own half hands its role over first.
func (r *run) heal(s [2]colo.Status) ([2]colo.Status, bool) {
	var ok bool
	for i := range s {
		if len(s[i].Disks) == 0 || s[i].Disks[0].Offline == "" {
			continue
		}
		n := r.w.hosts[i].node()
		ctx, cancel := context.WithTimeout(r.ctx, 30*time.Second)
		defer cancel()
		if s[i].State == colo.Protected {
			if err := n.Switchover(ctx, vm); err != nil {
				r.fail("n%d has no disk of its own and can't hand over although all is well: %v", i+1, err)
				return s, false
			}
			if s, ok = r.settle(); !ok {
				return s, false
			}
		}
		if err := n.SetDisk(ctx, vm, "vda", true, ""); err != nil {
			r.fail("n%d's disk can't be taken back into service: %v", i+1, err)
			return s, false
		}
	}
	if s, ok = r.settle(); ok {
		r.w.tell("=", "disks are in service: %s", describe(s))
	}
	return s, ok
}

// recover does what an operator does after a catastrophe, and checks that the VM can be brought back to full protection with all its data.
func (r *run) recover() {
	s, ok := r.settle()
	if !ok {
		return
	}
	r.w.tell("=", "at rest: %s", describe(s))
	runs := runner(s)
	if runs < 0 && r.w.deletion() {
		r.tidy(s)
		return
	}
	if runs < 0 && r.harmless() {
		r.fail("a single fault has stopped the VM: %s", describe(s))
		return
	}
	if r.harmless() && r.w.guestBoots() > 1 {
		r.fail("after a single fault the guest was booted again, though a copy of it lived: %s", describe(s))
		return
	}
	if r.held(s[0]) || r.held(s[1]) {
		if s, ok = r.vouch(s); !ok {
			return
		}
	}
	if s, ok = r.heal(s); !ok {
		return
	}
	if runs = runner(s); runs < 0 {
		if runs = r.restart(s); runs < 0 {
			return
		}
	}
	n := r.w.hosts[runs].node()
	ctx, cancel := context.WithTimeout(r.ctx, 30*time.Second)
	defer cancel()
	if s[1-runs].State == colo.Failed { // for a person
		r.w.mu.Lock()
		r.w.tally.Failed++
		r.w.mu.Unlock()
		return
	}
	if s[runs].State != colo.Protected || r.sch.Recovery { // which also says what is wanted from now on
		err := n.Protect(ctx, vm, colo.ProtectOptions{})
		for range 2 {
			if err == nil {
				break
			}
			if s, ok = r.settle(); !ok { // a call of before may have arrived late, but not for ever
				return
			}
			if runs = runner(s); runs < 0 {
				r.fail("the VM has stopped although all is well: %s", describe(s))
				return
			}
			n = r.w.hosts[runs].node()
			err = n.Protect(ctx, vm, colo.ProtectOptions{})
		}
		if err != nil {
			r.fail("n%d can't be protected although all is well: %v", runs+1, err)
			return
		}
	}
	if !r.answered("protected on n%d", runs+1) {
		return
	}
	r.finale(ctx, runs)
}

// harmless says whether the schedule is a single fault of those that protection is made for, or of daemons only, which no guest needs.
func (r *run) harmless() bool {
	if !slices.ContainsFunc(r.sch.Steps, func(s Step) bool { return s.What != KillDaemon && s.What != StopDaemon }) {
		return true
	}
	if r.sch.Unsettled || len(r.sch.Steps) != 1 {
		return false
	}
	switch r.sch.Steps[0].What {
	case PowerOffBoth, DarkStart, GuestOff, GuestOffEnds, FailOnce, Stop, StopForce, Delete:
		return false
	case PowerOff, Freeze, CutLink, CutOneWay, CutAll, Lossy, Slow, Force: // nobody can prove that the other copy doesn't go on
		return !r.sch.NoArbiter
	}
	return true
}

// runner is the node that runs the VM, or -1.
func runner(s [2]colo.Status) int {
	for i := range s {
		if s[i].State == colo.Solo || s[i].State == colo.Protected {
			return i
		}
	}
	return -1
}

// restart starts the VM on whichever node will. That none does is allowed if both say why.
func (r *run) restart(s [2]colo.Status) int {
	order := [2]int{0, 1}
	if r.sch.Seed%2 == 1 {
		order = [2]int{1, 0}
	}
	refused := ""
	for _, i := range order {
		n := r.w.hosts[i].node()
		ctx, cancel := context.WithTimeout(r.ctx, 20*time.Second)
		err := n.Start(ctx, vm)
		cancel()
		if err == nil {
			r.w.mu.Lock()
			r.w.tally.Restarts++
			r.w.mu.Unlock()
			r.w.tell("=", "started on n%d", i+1)
			return i
		}
		if ctx.Err() == context.DeadlineExceeded || err.Error() == "" {
			r.fail("start on n%d gives no reason: %v", i+1, err)
			return -1
		}
		refused += fmt.Sprintf("n%d: %v; ", i+1, err)
	}
	r.w.tell("=", "nobody may start: %s", refused)
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	for i := range s {
		if s[i].State == colo.Failed {
			r.w.tally.Failed++
			r.w.note("failed: " + s[i].Why)
			return -1
		}
	}
	r.w.note("refused: " + refused)
	r.w.tally.Refused++
	if r.w.lan.gone { // a second loss before a promoted copy had committed its overlays: a person can still do that
		return -1
	}
	for _, h := range r.w.hosts {
		whole := h.made
		for b, op := range r.w.lan.acked {
			whole = whole && h.image[b] >= op
		}
		if whole {
			return -1
		}
	}
	r.w.broken(RuleNoLostWrite, "no disk holds all that clients have seen confirmed (%v): %v on n1, %v on n2; %s",
		r.w.lan.acked, r.w.hosts[0].image, r.w.hosts[1].image, refused)
	return -1
}

// answered waits until the clients are served again.
func (r *run) answered(format string, args ...any) bool {
	r.w.mu.Lock()
	since := r.w.now()
	r.w.mu.Unlock()
	ok := r.until(6*time.Second, func() bool {
		r.w.mu.Lock()
		defer r.w.mu.Unlock()
		for i := range r.w.lan.clients {
			if r.w.lan.clients[i].last <= since {
				return false
			}
		}
		return true
	})
	if !ok && !r.w.broke() {
		r.fail("no client is answered: "+format, args...)
	}
	return ok
}

// finale proves the protection by using it.
func (r *run) finale(ctx context.Context, primary int) {
	w := r.w
	heir := 1 - primary
	switch r.sch.Last {
	case 0, 1:
		victim := primary
		if r.sch.Last == 1 {
			victim, heir = 1-primary, primary
		}
		w.mu.Lock()
		w.say("=", "the last test: n%d loses its QEMU", victim+1)
		if p := w.hosts[victim].proc; p != nil { // or it has just ended by itself
			p.die()
		}
		w.mu.Unlock()
	case 2:
		w.tell("=", "the last test: switchover")
		if err := w.hosts[primary].node().Switchover(ctx, vm); err != nil {
			r.fail("switchover: %v", err)
			return
		}
	}
	if !r.until(10*time.Second, func() bool { s, ok := r.states(); return ok && s[heir].State == colo.Solo }) {
		if !w.broke() {
			s, _ := r.states()
			r.fail("n%d does not go on: %s", heir+1, describe(s))
		}
		return
	}
	if !r.answered("n%d goes on alone", heir+1) || !r.sch.Recovery {
		return
	}
	// Protect and switchover said what their owner wants.
	if !r.until(20*time.Second, func() bool {
		s, ok := r.states()
		return ok && (s[0].State == colo.Protected || s[1].State == colo.Protected)
	}) && !w.broke() {
		s, _ := r.states()
		r.fail("it is not protected again by itself: %s", describe(s))
	}
}

// stranded is the node, or -1, whose copy waits for an arbiter that has forgotten the VM, because it was deleted on the other node meanwhile. It can't know that.
func (r *run) stranded(s [2]colo.Status) int {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	for i := range s {
		if r.w.deleted && r.w.witness.record == nil && s[i].State == colo.Arbitrating && s[1-i].Generation == 0 && s[1-i].Members == nil {
			return i
		}
	}
	return -1
}

// tidy is an operator who removes what a deletion on the other node has left.
func (r *run) tidy(s [2]colo.Status) {
	i := r.stranded(s)
	if i < 0 {
		return
	}
	n := r.w.hosts[i].node()
	ctx, cancel := context.WithTimeout(r.ctx, 20*time.Second)
	defer cancel()
	err := n.Stop(ctx, vm, colo.StopOptions{Force: true})
	if err == nil {
		err = n.Delete(ctx, vm, colo.DeleteOptions{})
	}
	if err != nil {
		r.fail("what a deletion has left on n%d can't be removed: %v", i+1, err)
	}
}

// guestBoots is how often the guest was booted.
func (w *World) guestBoots() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lan.epochs
}

// deletion says whether an operator has asked for the VM's end.
func (w *World) deletion() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.deleted
}
