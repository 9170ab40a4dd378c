package blockrepl

import (
	"context"
	"time"

	"github.com/coloctl/coloctl/qmp"
)

// Stats are what a resync did besides copying.
type Stats struct {
	Compared int64         // bytes of this side's disks that were hashed; the peer hashed as many
	Differed int64         // bytes of those that were not equal
	Last     int64         // bytes that were copied while the guest stood still
	LastTook time.Duration // and how long that took
}

// SetSpeed changes the limit of a Sync that runs, and of what it has yet to do;
// 0 is no limit.
func (m *Mirror) SetSpeed(ctx context.Context, bytesPerSecond int64) error {
	return m.Tune(ctx, bytesPerSecond, m.pausedNow())
}

// Tune changes the limit of a Sync that runs, in bytes a second for each disk,
// and makes it pause or go on. A paused one holds what it has and does not
// stall; the guest runs on.
func (m *Mirror) Tune(ctx context.Context, bytesPerSecond int64, paused bool) error {
	m.mu.Lock()
	m.speed, m.paused = bytesPerSecond, paused
	close(m.tuned)
	m.tuned = make(chan struct{})
	m.mu.Unlock()
	jobs, err := m.c.QueryJobs(ctx)
	if err != nil {
		return err
	}
	for _, d := range m.disks {
		for _, j := range jobs {
			if j.ID == d.job() && j.Status != "concluded" {
				if err := m.tuneJob(ctx, j, bytesPerSecond, paused); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// tuneJob passes a refusal over: the job has just ended.
func (m *Mirror) tuneJob(ctx context.Context, j qmp.Job, speed int64, paused bool) error {
	if err := m.c.BlockJobSetSpeed(ctx, j.ID, speed); err != nil && !refused(err) {
		return err
	}
	command := ""
	switch stopped := j.Status == "paused" || j.Status == "standby"; {
	case paused && !stopped:
		command = "job-pause"
	case !paused && stopped:
		command = "job-resume"
	default:
		return nil
	}
	if err := m.c.Execute(ctx, command, map[string]string{"id": j.ID}, nil); err != nil && !refused(err) {
		return err
	}
	return nil
}

func (m *Mirror) pausedNow() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.paused
}

// unpaused waits for the end of a pause.
func (m *Mirror) unpaused(ctx context.Context) error {
	for {
		m.mu.Lock()
		paused, tuned := m.paused, m.tuned
		m.mu.Unlock()
		if !paused {
			return nil
		}
		select {
		case <-tuned:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (m *Mirror) currentSpeed() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.speed
}

// Stats tells what the resync did besides copying, so far.
func (m *Mirror) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stats
}

// Copied returns how many bytes all passes covered so far. In mode Bitmap that
// is what was sent; in mode Full zeroes count too, which don't travel.
func (m *Mirror) Copied() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.copied + m.live
}
