package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
)

// Rules whose breach is a [Violation].
const (
	RuleOneVoice    = "one voice"
	RuleNoOldData   = "no old data"
	RuleNoLostWrite = "no lost write"
	RuleLive        = "liveness"
	RuleTable       = "unexpected event"
)

const vm = "web"

// Result is how a schedule went.
type Result struct {
	Violation *Violation // nil: all promises were kept
	Story     []Line     // only when asked for
	Tally     Tally
	Took      time.Duration // of virtual time
}

// run is a schedule being played.
type run struct {
	w     *World
	sch   Schedule
	ctx   context.Context
	stop  context.CancelFunc
	asked sync.WaitGroup
}

// Run plays a schedule on virtual time. With story it says what happened.
func Run(t *testing.T, s Schedule, story bool) (res Result) {
	defer func() {
		if p := recover(); p != nil {
			res.Violation = &Violation{Rule: RuleLive, Text: fmt.Sprint("panic: ", p)}
		}
	}()
	synctest.Test(t, func(*testing.T) {
		r := &run{w: newWorld(s.Seed, s.Links, story), sch: s}
		r.w.noGate, r.w.noArbiter, r.w.recovery = s.NoGate, s.NoArbiter, s.Recovery
		r.ctx, r.stop = context.WithCancel(context.Background())
		r.play()
		r.end()
		w := r.w
		res = Result{Violation: w.violation, Tally: w.tally, Took: w.now()}
		if story {
			res.Story = slices.Clone(w.lines)
		}
	})
	return res
}

// spec is the VM of all schedules.
func spec() *colo.Spec {
	return &colo.Spec{Name: vm, Memory: 64 << 20, Disks: []colo.DiskSpec{{Name: "vda", File: "web.raw", Size: 1 << 20}},
		NICs:       []colo.NICSpec{{Name: "net0", Bridge: "br0", MAC: "52:54:00:12:34:56"}},
		Protection: colo.ProtectionSpec{CheckpointDelay: colo.Duration(checkpointDelay)}}
}

func (e *env) config() colo.NodeConfig {
	var recovery *colo.Recovery
	if e.w.recovery {
		recovery = &colo.Recovery{HoldDown: time.Second, PrimaryFirst: 2 * time.Second}
	}
	var who arbiter.Arbiter
	if !e.w.noArbiter {
		who = ask{e}
	}
	return colo.NodeConfig{
		Name: e.h.name, Recovery: recovery, RunDir: "/run", StorageDir: "/disks", Links: e.h.info().Links, Ports: colo.PortRange{First: 9000, Last: 9100}, Accel: "tcg",
		Records: daemonRecords{e.h.disk, e}, Arbiter: who, HeartbeatKey: make([]byte, 32), HeartbeatPort: heartbeatPort, HangTimeout: hangTimeout,
		Launcher: launcher{e}, ListenPacket: e.listenPacket, Log: slog.New(&handler{e: e}),
	}
}

// handler looks for what the engine itself calls an error.
type handler struct{ e *env }

func (l *handler) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelError }
func (l *handler) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l *handler) WithGroup(string) slog.Handler                    { return l }

func (l *handler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Message)
	injected := false
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		if err, ok := a.Value.Any().(error); ok && errors.Is(err, errInjected) {
			injected = true
		}
		return true
	})
	w := l.e.w
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case l.e.gone, injected, w.storeFailed && r.Message == "state was not written":
	case r.Message == "unexpected event", r.Message == "state was not written":
		w.broken(RuleTable, "%s: %s", l.e.h.name, b.String())
	default:
		w.say(l.e.h.name, "  error: %s", b.String())
	}
	return nil
}

// play sets the world up, does the steps, mends everything and looks at what is left.
func (r *run) play() {
	w := r.w
	w.mu.Lock()
	w.hosts[0].startDaemon()
	w.in(w.between(actorFaults, 0, 150*time.Millisecond), w.hosts[1].startDaemon) // their heartbeats are not in step
	w.mu.Unlock()
	if !r.until(5*time.Second, func() bool { return w.hosts[0].node() != nil && w.hosts[1].node() != nil }) {
		r.fail("the daemons did not start")
		return
	}
	n1 := w.hosts[0].node()
	if err := n1.Create(r.ctx, spec()); err != nil {
		r.fail("create: %v", err)
		return
	}
	if err := n1.Start(r.ctx, vm); err != nil {
		r.fail("start: %v", err)
		return
	}
	w.mu.Lock()
	w.lan.begin()
	w.mu.Unlock()
	if r.sch.Unsettled {
		r.operate(w.hosts[0], Step{What: Protect})
	} else if err := n1.Protect(r.ctx, vm, colo.ProtectOptions{}); err != nil {
		r.fail("protect: %v", err)
		return
	}
	for _, s := range r.sch.Steps {
		r.wait(s)
		r.apply(s)
		if w.broke() {
			return
		}
	}
	time.Sleep(r.sch.Tail)
	if w.broke() {
		return
	}
	w.tell("=", "everything is mended")
	w.mendAll()
	r.plugIn()
	r.asked.Wait() // operators have patience, but not for ever
	r.recover()
}

func (w *World) broke() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.violation != nil
}

func (r *run) fail(format string, args ...any) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	r.w.broken(RuleLive, format, args...)
}

// wait is until a step is due.
func (r *run) wait(s Step) {
	if s.IO == 0 {
		time.Sleep(s.After)
		return
	}
	t := trap{fire: make(chan struct{})}
	h := r.w.hosts[s.At]
	r.w.mu.Lock()
	t.at = h.ios + s.IO
	h.traps = append(h.traps, t)
	r.w.mu.Unlock()
	select {
	case <-t.fire:
	case <-time.After(s.After):
	}
}

// until waits for something to become true. It looks now and then: what it looks at tells nobody of changes.
func (r *run) until(d time.Duration, ok func() bool) bool {
	return r.untilEvery(d, 20*time.Millisecond, ok)
}

func (r *run) untilEvery(d, every time.Duration, ok func() bool) bool {
	for end := time.Now().Add(d); ; {
		time.Sleep(every + time.Microsecond)
		if ok() {
			return true
		}
		if r.w.broke() || time.Now().After(end) {
			return false
		}
	}
}

// end closes everything down.
func (r *run) end() {
	w := r.w
	r.stop()
	w.mu.Lock()
	w.over = true
	w.lan.end()
	for _, h := range w.hosts {
		for h.stopped > 0 {
			h.cont()
		}
		h.endDaemon()
	}
	w.mu.Unlock()
	r.asked.Wait()
	for _, h := range w.hosts {
		<-h.closed
	}
	w.serving.Wait()
	close(w.quit)
	w.wg.Wait()
}
