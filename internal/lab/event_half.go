package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
)

// failDisk lets the writes to a node's half of the guest's file system fail, until its QEMU ends.
func failDisk(ctx context.Context, _ *Run, n *Node) error { return n.FailDisk(ctx, "vda") }

// stayOut sees that a half that failed isn't used again by itself, and that nobody gives up because of it. A secondary that was ended before its own
// QEMU saw the failure is an exception: it is tried again, and the lab's fault has ended with its QEMU.
var stayOut = Step{Name: "the half stays out of service", Do: func(ctx context.Context, r *Run) error {
	n := r.Lab.Node(Other(r.lost))
	return poll(ctx, func() (bool, error) {
		s, err := n.Status(ctx)
		if err != nil {
			return false, err
		}
		if strings.Contains(s.Outlook, colo.ErrDiskOffline.Error()) {
			r.Tell.Say("%s: %s", n.Name, s.Outlook)
			return true, nil
		}
		if s.State == colo.Protected {
			r.Tell.Say("%s has protected it again by the same half: the copy there had not seen the failure", n.Name)
			return true, nil
		}
		return false, fmt.Errorf("%s is %s (%s), and doesn't say that a half is out of service: %q; given up: %q", n.Name, s.State, s.Why, s.Outlook, s.GivenUp)
	})
}}

// takeBack is what a person does when the disk was replaced: the daemons do the rest.
var takeBack = heal("the disk was replaced, and is taken back into service", func(ctx context.Context, r *Run) error {
	n := r.Lab.Node(r.lost)
	if other, err := r.Lab.Node(Other(r.lost)).Status(ctx); err == nil && other.State == colo.Protected {
		r.healed = other.Since // it is in use already, see stayOut
		return nil
	}
	s, err := n.Status(ctx)
	if err != nil {
		return err
	}
	if s.Disks[0].Offline == "" || s.Disks[0].InSync {
		return fmt.Errorf("%s: a disk that fails counts as in service, or as current: %+v", r.lost, s.Disks[0])
	}
	return n.Client.DiskOnline(ctx, VM, "vda", api.Request{Reason: "replaced"})
})

// slowRequests is what a slow disk does in a second: about a tenth of what the guest's clients ask of it.
const slowRequests = 40

// slowDisks: the secondary's disk is slow for a while, then the primary's. It takes longer then, and nobody changes a role.
func slowDisks(each time.Duration) Step {
	return undisturbed("the disk of the secondary's host is slow, then that of the primary's", func(ctx context.Context, r *Run) error {
		for _, which := range []side{secondary, primary} {
			name, err := which(ctx, r)
			if err != nil {
				return err
			}
			n := r.Lab.Node(name)
			if err := n.SlowDisk(ctx, "vda", slowRequests); err != nil {
				return err
			}
			r.Tell.Say("%s: its disk does %d requests a second", name, slowRequests)
			err = pause(ctx, each)
			if e := n.HastenDisk(ctx, "vda"); err == nil {
				err = e
			}
			if err == nil {
				err = r.protectedStill(ctx)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// corruption flips one byte in the secondary's half of the disk that the guest doesn't write, by turns finds and repairs it.
var corruption = Step{Name: "a byte of the secondary's half changes", Do: func(ctx context.Context, r *Run) error {
	name, err := r.Lab.Primary(ctx)
	if err != nil {
		return err
	}
	n := r.Lab.Node(name)
	if err := r.verify(ctx, n, false); err != nil {
		return fmt.Errorf("before anything was changed: %w", err)
	}
	at, err := flip(r.Lab.Node(Other(name)).path("disks", dataFile), r.Rand.Int64N(r.Lab.opts.Data))
	if err != nil {
		return err
	}
	r.Tell.Say("%s: byte %d of its half of %s is not what it was", Other(name), at, dataDisk)
	if err := r.verify(ctx, n, false); err == nil || !strings.Contains(err.Error(), colo.ErrDiffer.Error()) {
		return fmt.Errorf("verify has not found byte %d: %w", at, err)
	}
	if s, err := n.Status(ctx); err != nil || s.Verify == nil || s.Verify.Differed == 0 {
		return errors.Join(errors.New("the status doesn't tell of the difference"), err)
	}
	r.Tell.Say("disk verify has found it; now it is to repair it")
	r.healed = time.Now()
	if err := r.verify(ctx, n, true); err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	return r.verify(ctx, n, false)
}}

func (r *Run) verify(ctx context.Context, n *Node, repair bool) error {
	op, err := n.Client.Verify(ctx, VM, api.VerifyRequest{VerifyOptions: colo.VerifyOptions{Repair: repair}})
	return await(ctx, n, op, err)
}

// flip inverts a byte of a file.
func flip(path string, at int64) (int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	b := make([]byte, 1)
	if _, err = f.ReadAt(b, at); err == nil {
		b[0] = ^b[0]
		_, err = f.WriteAt(b, at)
	}
	return at, errors.Join(err, f.Close())
}
