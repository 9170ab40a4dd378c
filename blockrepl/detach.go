package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coloctl/coloctl/qmp"
)

// YankNodes names the nodes whose connection to the peer must be yanked before
// anything else is asked of QEMU when the peer is lost. Some may not exist:
// choose from query-yank.
func YankNodes(disks []Disk) []string {
	var l []string
	for _, d := range disks {
		l = append(l, d.nbd(), d.target())
	}
	return l
}

// yank cuts what there is of YankNodes.
func yank(ctx context.Context, c *qmp.Client, disks []Disk) error {
	mine := make(map[string]bool, 2*len(disks))
	for _, n := range YankNodes(disks) {
		mine[n] = true
	}
	all, err := c.QueryYank(ctx)
	if err != nil {
		return err
	}
	var cut []qmp.YankInstance
	for _, i := range all {
		if i.Type == "block-node" && mine[i.NodeName] {
			cut = append(cut, i)
		}
	}
	if len(cut) == 0 {
		return nil
	}
	return c.Yank(ctx, cut...)
}

// Detach takes the peer's disks away from the primary. When the peer is lost,
// YankNodes must have been yanked before, or a frozen peer hangs QEMU. When it
// is there, because protection ends on request, no yank is needed. A running
// resync is ended too. Whatever state things are in, a second call does what is
// left to do. What was sent to the peer and may not be durable there counts as
// not sent from here on.
func Detach(ctx context.Context, c *qmp.Client, disks []Disk) error {
	return dismantle(ctx, c, disks)
}

// dismantle removes jobs, then children, then nodes: each is kept by the one
// before. It goes on after QEMU's refusals, so that one disk doesn't leave the
// others in the way.
func dismantle(ctx context.Context, c *qmp.Client, disks []Disk) error {
	errs := []error{endJobs(ctx, c, disks), closeScan(ctx, c, disks)}
	g, err := readGraph(ctx, c)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, d := range disks {
		if child := g.edge(d.colo(), d.nbd()); child != "" {
			if err := c.BlockdevChange(ctx, d.colo(), child, ""); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		for _, node := range []string{d.nbd(), d.target()} {
			if g.has(node) {
				errs = append(errs, c.BlockdevDel(ctx, node))
			}
		}
	}
	return errors.Join(append(errs, recoverHeld(ctx, c, disks))...)
}

// jobPoll is how often an ending job is looked at, besides at its events.
const jobPoll = 250 * time.Millisecond

// answerWithin bounds one question to QEMU when nothing else does. It is long:
// a healthy QEMU can be silent for seconds.
const answerWithin = 30 * time.Second

// endJobs ends our jobs in whatever state they are and forgets them.
func endJobs(ctx context.Context, c *qmp.Client, disks []Disk) error {
	cancelled := map[string]bool{}
	return follow(ctx, c, jobPoll, answerWithin, func(ctx context.Context, jobs map[string]qmp.Job) (bool, error) {
		left := false
		for _, d := range disks {
			j, ok := jobs[d.job()]
			var err error
			switch {
			case !ok:
				continue
			case j.Status == "concluded":
				err = c.JobDismiss(ctx, j.ID)
			case !cancelled[j.ID]:
				cancelled[j.ID], left = true, true
				err = c.BlockJobCancel(ctx, j.ID, true)
			default:
				left = true
			}
			// It may have moved on since it was listed: look again.
			if refused(err) {
				left, err = true, nil
			}
			if err != nil {
				return false, fmt.Errorf("end resync of disk %s: %w", d.Name, err)
			}
		}
		return !left, nil
	})
}

// follow calls look with all jobs, at once, at each event of a job, and each
// poll, until it says done. Events only say that it is worth looking: what is
// true is asked, so that a lost event costs one poll. An answer that takes
// longer than within is an error that matches qmp.ErrTimeout.
func follow(ctx context.Context, c *qmp.Client, poll, within time.Duration, look func(context.Context, map[string]qmp.Job) (bool, error)) error {
	sub := c.Subscribe(qmp.SubscribeOptions{Match: qmp.Named("JOB_STATUS_CHANGE", "BLOCK_JOB_ERROR")})
	defer sub.Close()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		list, err := jobsWithin(ctx, c, within)
		if err != nil {
			return err
		}
		jobs := make(map[string]qmp.Job, len(list))
		for _, j := range list {
			jobs[j.ID] = j
		}
		if done, err := look(ctx, jobs); done || err != nil {
			return err
		}
		select {
		case <-sub.C(): // closed with the connection; the next query tells
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("blockrepl: wait for block jobs: %w", context.Cause(ctx))
		}
	}
}

func jobsWithin(ctx context.Context, c *qmp.Client, within time.Duration) ([]qmp.Job, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return c.QueryJobs(ctx)
}
