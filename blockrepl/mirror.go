package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/coloctl/coloctl/qmp"
)

// A Mirror makes a standby's disks equal to this QEMU's and then writes to
// both. It is used for one attach; after an Abort it may start again.
type Mirror struct {
	c     *qmp.Client
	disks []Disk
	to    Address
	o     Options

	report sync.Mutex // held while OnProgress is called

	mu     sync.Mutex
	synced bool
	cancel context.CancelCauseFunc // of the Sync or Switch that runs
	idle   chan struct{}           // closed when that has returned
	speed  int64
	paused bool
	tuned  chan struct{} // closed and replaced when speed or paused has changed
	copied int64         // by jobs that ended
	live   int64         // by jobs that run
	stats  Stats
}

// NewMirror prepares to mirror disks to a standby's Export. It does nothing yet.
func NewMirror(c *qmp.Client, disks []Disk, to Address, o Options) *Mirror {
	o.setDefaults(c)
	return &Mirror{c: c, disks: disks, to: to, o: o, speed: o.Speed, tuned: make(chan struct{})}
}

// begin makes what follows end when Abort is called; end makes that the error.
// It fails if something else is under way.
func (m *Mirror) begin(ctx context.Context) (_ context.Context, end func(*error), err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	idle := make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cancel != nil {
		cancel(nil)
		return nil, nil, ErrOverlap
	}
	m.cancel, m.idle = cancel, idle
	return ctx, func(err *error) {
		if *err != nil && errors.Is(context.Cause(ctx), ErrAborted) {
			*err = fmt.Errorf("%w: %w", ErrAborted, *err)
		}
		m.mu.Lock()
		m.cancel = nil
		m.mu.Unlock()
		cancel(nil)
		close(idle)
	}, nil
}

// Sync makes the peer's disks equal while the guest runs and writes. In mode
// Full they stay equal from then on; in the others the rest is left to Switch.
// It fails with ErrNoBitmap, ErrUnreachable, ErrAttached, ErrCommitFailed,
// ErrJobFailed or ErrStalled; after any error call Abort. On a former secondary
// it first waits until the overlays are committed. In neither mode does a peer
// that dies or freezes make a write of the guest fail; in mode Bitmap a frozen
// one can block some until the yank in Abort.
func (m *Mirror) Sync(ctx context.Context) (err error) {
	if m.o.Mode != Bitmap && m.o.Mode != Checksum && m.o.Mode != Full {
		return fmt.Errorf("blockrepl: unknown mode %q", m.o.Mode)
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end(&err)
	if err := WaitCommitted(ctx, m.c, m.disks); err != nil {
		return err
	}
	if err := m.prepare(ctx); err != nil {
		return err
	}
	if m.o.Mode == Checksum {
		if err := m.scan(ctx); err != nil {
			return err
		}
	}
	if err := probe(ctx, m.o.ProbeDial, m.to, m.o.ProbeTimeout); err != nil {
		return err
	}
	for _, d := range m.disks {
		if err := m.c.BlockdevAdd(ctx, targetNode(d, m.to, m.openTimeout())); err != nil {
			return err
		}
	}
	if m.o.Mode == Full {
		err = m.startMirrors(ctx)
	} else {
		err = m.passes(ctx)
	}
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.synced = true
	m.mu.Unlock()
	return nil
}

// prepare removes what an earlier attempt left and brings the bitmaps into the
// state that the mode needs.
func (m *Mirror) prepare(ctx context.Context) error {
	g, err := readGraph(ctx, m.c)
	if err != nil {
		return err
	}
	left := false
	for _, d := range m.disks {
		if g.has(d.nbd()) {
			return fmt.Errorf("%w: disk %s", ErrAttached, d.Name)
		}
		left = left || g.has(d.target())
	}
	if left {
		if err := m.undo(ctx); err != nil {
			return err
		}
	}
	switch {
	case m.o.Mode == Full:
		return forgetBitmaps(ctx, m.c, m.disks)
	case m.o.Mode == Checksum && (m.o.Scan == nil || len(m.o.Scan.From) == 0):
		if err := forgetBitmaps(ctx, m.c, m.disks); err != nil {
			return err
		}
		// From here on, which is before the first block is read, everything that
		// is written counts as different.
		return startBitmaps(ctx, m.c, m.disks)
	}
	if name := g.withoutBitmap(m.disks); name != "" {
		return fmt.Errorf("%w: disk %s", ErrNoBitmap, name)
	}
	return recoverHeld(ctx, m.c, m.disks)
}

func (m *Mirror) openTimeout() int { return int(math.Ceil(m.o.OpenTimeout.Seconds())) }

func (m *Mirror) startMirrors(ctx context.Context) error {
	if err := m.unpaused(ctx); err != nil {
		return err
	}
	for _, d := range m.disks {
		if err := m.c.BlockdevMirror(ctx, mirrorJob(d, m.currentSpeed())); err != nil {
			return err
		}
	}
	return m.wait(ctx, untilReady)
}

// Passes while the guest runs end when little is left, or when a pass didn't
// leave much less than the one before: the guest writes as fast as we copy. More
// than can be copied in MaxPause is worth a few more.
const (
	littleLeft = 4 << 20 // bytes, of all disks
	maxPasses  = 5
	hardPasses = 10
)

func (m *Mirror) passes(ctx context.Context) error {
	before := int64(math.MaxInt64)
	for i := range hardPasses {
		begun, sent := time.Now(), m.Copied()
		left, err := m.pass(ctx)
		if err != nil || left <= littleLeft {
			return err
		}
		rate := float64(m.Copied()-sent) / time.Since(begun).Seconds()
		long := float64(left) > rate*m.o.MaxPause.Seconds()
		if !long && (left > before/4*3 || i >= maxPasses) {
			return nil
		}
		before = left
	}
	return nil
}

// pass copies what was written since the last one and returns how many bytes
// were written meanwhile.
func (m *Mirror) pass(ctx context.Context) (left int64, err error) {
	if err := m.unpaused(ctx); err != nil {
		return 0, err
	}
	g, err := readGraph(ctx, m.c)
	if err != nil {
		return 0, err
	}
	for _, bitmap := range []string{heldBitmap, passBitmap} {
		if err := addDisabled(ctx, m.c, g, m.disks, bitmap); err != nil {
			return 0, err
		}
	}
	if err := transaction(ctx, m.c, m.disks, passActions); err != nil {
		return 0, err
	}
	for _, d := range m.disks {
		if err := startPass(ctx, m.c, passJob(d, m.currentSpeed())); err != nil {
			return 0, err
		}
	}
	if err := m.wait(ctx, untilEnded); err != nil {
		return 0, err
	}
	if g, err = readGraph(ctx, m.c); err != nil {
		return 0, err
	}
	return g.dirty(m.disks, syncBitmap), nil
}

// startPass does without on-cbw-error on a QEMU that doesn't know it. There, a
// peer that dies in the middle can make a write of the guest fail.
func startPass(ctx context.Context, c *qmp.Client, j backupJob) error {
	err := c.Execute(ctx, "blockdev-backup", j, nil)
	var e *qmp.Error
	if errors.As(err, &e) && strings.Contains(e.Desc, "on-cbw-error") {
		return c.BlockdevBackup(ctx, j.BlockdevBackup)
	}
	return err
}

// Switch makes all writes from now on go to both sides. The guest must be
// stopped, at pre-switchover, and must not run before COLO starts: what it wrote
// would be written once on this side, and twice on the other. After an error
// call Abort.
func (m *Mirror) Switch(ctx context.Context) (err error) {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end(&err)
	m.mu.Lock()
	synced := m.synced
	m.synced = false
	m.mu.Unlock()
	if !synced {
		return ErrNotSynced
	}
	st, err := m.c.QueryStatus(ctx)
	if err != nil {
		return err
	}
	if st.Running {
		return ErrGuestRuns
	}
	if err := m.Tune(ctx, 0, false); err != nil { // the guest waits
		return err
	}
	if m.o.Mode == Full {
		err = m.endMirrors(ctx)
	} else {
		err = m.lastPass(ctx)
	}
	if err != nil {
		return err
	}
	return m.attach(ctx)
}

// endMirrors ends the mirrors at a moment when both sides are equal.
func (m *Mirror) endMirrors(ctx context.Context) error {
	jobs, err := m.c.QueryJobs(ctx)
	if err != nil {
		return err
	}
	byID := make(map[string]qmp.Job, len(jobs))
	for _, j := range jobs {
		byID[j.ID] = j
	}
	for _, d := range m.disks {
		// Only a mirror that is ready ends well by a cancel; any other
		// state means that it died since.
		if j := byID[d.job()]; j.Status != "ready" {
			return &JobError{d.Name, "mirror is " + orNone(j.Status) + ": " + orNone(j.Error)}
		}
		if err := m.c.BlockJobCancel(ctx, d.job(), false); err != nil {
			return err
		}
	}
	if err := m.wait(ctx, untilEnded); err != nil {
		return err
	}
	return startBitmaps(ctx, m.c, m.disks)
}

func orNone(s string) string {
	if s == "" {
		return "gone"
	}
	return s
}

// lastPass copies the rest. Nothing can be written meanwhile.
func (m *Mirror) lastPass(ctx context.Context) error {
	g, err := readGraph(ctx, m.c)
	if err != nil {
		return err
	}
	if g.dirty(m.disks, syncBitmap) == 0 {
		return nil
	}
	begun, sent := time.Now(), m.Copied()
	left, err := m.pass(ctx)
	m.mu.Lock()
	m.stats.Last, m.stats.LastTook = m.copied+m.live-sent, time.Since(begun)
	m.mu.Unlock()
	if err == nil && left > 0 {
		err = fmt.Errorf("blockrepl: %d bytes were written while the guest was stopped", left)
	}
	return err
}

// attach replaces the targets by children of the quorums.
func (m *Mirror) attach(ctx context.Context) error {
	g, err := readGraph(ctx, m.c)
	if err != nil {
		return err
	}
	if err := removeBitmaps(ctx, m.c, g, m.disks, passBitmap); err != nil {
		return err
	}
	for _, d := range m.disks {
		if err := m.c.BlockdevDel(ctx, d.target()); err != nil {
			return err
		}
		if err := m.c.BlockdevAdd(ctx, childNode(d, m.to, m.openTimeout())); err != nil {
			return err
		}
		if err := m.c.BlockdevChange(ctx, d.colo(), "", d.nbd()); err != nil {
			return err
		}
	}
	return nil
}

// Abort undoes all of the above, whatever state it is in, and may be repeated.
// A Sync or Switch that is under way fails with ErrAborted. It cuts the
// connections to the peer first, so it works on a peer that is frozen. A bitmap
// stays good for the same peer, except in mode Full before Switch.
func (m *Mirror) Abort(ctx context.Context) error {
	m.mu.Lock()
	idle := m.idle
	if m.cancel != nil {
		m.cancel(ErrAborted)
	}
	m.mu.Unlock()
	if idle != nil {
		// It only waits for replies, and stops that at once.
		<-idle
	}
	m.mu.Lock()
	m.synced = false
	m.copied, m.live = m.copied+m.live, 0
	m.mu.Unlock()
	return m.undo(ctx)
}

func (m *Mirror) undo(ctx context.Context) error {
	err := yank(ctx, m.o.Rescue, m.disks)
	return errors.Join(err, dismantle(ctx, m.c, m.disks))
}
