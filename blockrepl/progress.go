package blockrepl

import (
	"context"
	"errors"
	"time"

	"github.com/coloctl/coloctl/qmp"
)

// Phase is what a resync does at the moment.
type Phase string

// Phases of a resync.
const (
	Comparing Phase = "comparing" // both sides hash their halves; nothing travels
	Copying   Phase = "copying"
)

// Progress of one disk's resync.
type Progress struct {
	Disk  string
	Phase Phase
	Done  int64         // bytes, in this pass
	Total int64         // bytes, in this pass; grows while the guest writes
	Rate  float64       // bytes a second, lately
	ETA   time.Duration // of this pass; 0 if unknown
	Ready bool          // nothing is left but what the guest writes now
}

// goal is what a job is waited for.
type goal int

const (
	untilReady goal = iota // a mirror has copied all and keeps the copy equal
	untilEnded             // the job is over and went well
)

// watch is what is known of one disk's job.
type watch struct {
	disk    Disk
	done    bool
	counted bool // in Mirror.copied
	last    qmp.Job
	change  time.Time // when last had changed
	meter   meter
}

// meter measures a rate.
type meter struct {
	rate    float64 // bytes a second, smoothed
	sample  int64   // bytes done at sampled
	sampled time.Time
}

func (m *meter) update(done int64) {
	// Looks that follow each other at once, because of events, say nothing
	// about the rate.
	now := time.Now()
	if dt := now.Sub(m.sampled).Seconds(); dt >= 0.05 {
		r := float64(done-m.sample) / dt
		if m.rate == 0 {
			m.rate = r
		} else {
			m.rate += 0.3 * (r - m.rate)
		}
		m.sampled, m.sample = now, done
	}
}

// eta is how long left bytes take; 0 if nobody knows.
func (m *meter) eta(left int64) time.Duration {
	if left <= 0 || m.rate <= 0 {
		return 0
	}
	return time.Duration(float64(left) / m.rate * float64(time.Second))
}

// wait follows the jobs of all disks until they have reached the goal. Jobs
// that ended are forgotten. It fails with a *JobError or a *StallError.
func (m *Mirror) wait(ctx context.Context, g goal) error {
	watches := make([]*watch, len(m.disks))
	for i, d := range m.disks {
		watches[i] = &watch{disk: d, change: time.Now(), meter: meter{sampled: time.Now()}}
	}
	err := follow(ctx, m.c, m.o.Poll, m.o.StallAfter, func(ctx context.Context, jobs map[string]qmp.Job) (bool, error) {
		all := true
		for _, w := range watches {
			if w.done {
				continue
			}
			if err := m.look(ctx, w, jobs, g); err != nil {
				return false, err
			}
			if m.pausedNow() {
				w.change = time.Now()
			}
			if !w.done && time.Since(w.change) > m.stallAfter() {
				return false, w.stalled(nil)
			}
			all = all && w.done
		}
		m.account(watches)
		return all, nil
	})
	if errors.Is(err, qmp.ErrTimeout) && ctx.Err() == nil {
		// QEMU itself waits for the peer.
		for _, w := range watches {
			if !w.done {
				return w.stalled(err)
			}
		}
	}
	return err
}

// stallAfter leaves time for the largest piece that QEMU copies at once, which
// is a mirror's buffer.
func (m *Mirror) stallAfter() time.Duration {
	const piece = 16 << 20
	d := m.o.StallAfter
	if speed := m.currentSpeed(); speed > 0 {
		d += time.Duration(float64(piece) / float64(speed) * float64(time.Second))
	}
	return d
}

func (w *watch) stalled(cause error) error {
	return &StallError{
		Disk: w.disk.Name, For: time.Since(w.change).Round(time.Millisecond),
		Done: w.last.CurrentProgress, Total: w.last.TotalProgress, Cause: cause,
	}
}

func (m *Mirror) look(ctx context.Context, w *watch, jobs map[string]qmp.Job, g goal) error {
	j, ok := jobs[w.disk.job()]
	if !ok {
		// It can't end without us, because it isn't dismissed by itself.
		return &JobError{w.disk.Name, "somebody else ended it"}
	}
	w.update(j)
	switch {
	case j.Status == "concluded" && j.Error != "":
		return &JobError{w.disk.Name, j.Error}
	case j.Status == "concluded" && g == untilReady:
		return &JobError{w.disk.Name, "it ended before it was ready"}
	case j.Status == "concluded":
		w.done = true
		if err := m.c.JobDismiss(ctx, j.ID); err != nil {
			return err
		}
	case j.Status == "ready" && g == untilReady:
		w.done = true
	}
	if m.o.OnProgress != nil {
		m.report.Lock()
		m.o.OnProgress(w.progress())
		m.report.Unlock()
	}
	return nil
}

func (w *watch) update(j qmp.Job) {
	now := time.Now()
	if j.CurrentProgress != w.last.CurrentProgress || j.Status != w.last.Status {
		w.change = now
	}
	w.meter.update(j.CurrentProgress)
	w.last = j
}

func (w *watch) progress() Progress {
	return Progress{
		Disk: w.disk.Name, Phase: Copying, Done: w.last.CurrentProgress, Total: w.last.TotalProgress, Rate: w.meter.rate,
		Ready: w.done, ETA: w.meter.eta(w.last.TotalProgress - w.last.CurrentProgress),
	}
}

// account keeps Copied right: what ended jobs did stays, what others did so far
// is counted anew each time.
func (m *Mirror) account(watches []*watch) {
	var live, ended int64
	for _, w := range watches {
		switch {
		case w.counted:
		case w.last.Status == "concluded":
			w.counted = true
			ended += w.last.CurrentProgress
		default:
			live += w.last.CurrentProgress
		}
	}
	m.mu.Lock()
	m.copied += ended
	m.live = live
	m.mu.Unlock()
}
