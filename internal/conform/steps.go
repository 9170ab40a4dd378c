package conform

// What a pair goes through: each method is a step of a story, and says what it found.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/qmp"
)

// standby prepares a copy on the other host, and on the first call the one that runs.
func (p *pair) standby(ctx context.Context) (string, error) {
	if p.copies[p.primary] == nil {
		c, err := p.start(ctx, p.primary, false)
		if err != nil {
			return "", err
		}
		if err := errors.Join(c.Join(ctx), c.Cont(ctx)); err != nil {
			return "", err
		}
	}
	begun := time.Now()
	c, err := p.start(ctx, p.secondary(), true)
	if err != nil {
		return "", err
	}
	if err := c.Listen(ctx, p.at[p.secondary()]); err != nil {
		return "", err
	}
	return "listens after " + ms(time.Since(begun)), nil
}

// capabilities tells which ones the trial has come to.
func (p *pair) capabilities(ctx context.Context) (found string, err error) {
	err = p.ask(ctx, p.secondary(), func(c *qmp.Client) error {
		on, err := c.QueryMigrateCapabilities(ctx)
		switch {
		case err != nil:
		case !on["x-colo"]:
			err = errors.New("x-colo is off: a migration would make two VMs of one")
		case on["return-path"]:
			found = "x-colo with return-path"
		default:
			found = "x-colo alone"
		}
		return err
	})
	return found, err
}

// attach leads the primary into COLO with a standby that listens.
func (p *pair) attach(ctx context.Context) (string, error) {
	c, to := p.copies[p.primary], p.at[p.secondary()]
	if err := c.SyncDisks(ctx, colo.SyncRequest{To: to, Mode: p.mode}); err != nil {
		return "", fmt.Errorf("copy the disk: %w", err)
	}
	if err := c.Connect(ctx, to); err != nil {
		return "", err
	}
	if err := c.CopyMemory(ctx, to); err != nil {
		return "", fmt.Errorf("copy the memory: %w", err)
	}
	stopped := time.Now()
	r, err := c.SwitchDisks(ctx)
	if err != nil {
		return "", fmt.Errorf("switch the disks: %w", err)
	}
	if err := c.StartColo(ctx); err != nil {
		return "", fmt.Errorf("start COLO: %w", err)
	}
	return fmt.Sprintf("the guest stood still for %s; %d kB of the disk's %d sent", ms(time.Since(stopped)), r.Copied>>10, diskSize>>10), nil
}

func (p *pair) protect(ctx context.Context) (string, error) {
	if _, err := p.standby(ctx); err != nil {
		return "", err
	}
	return p.attach(ctx)
}

func (p *pair) killSecondary(ctx context.Context) (string, error) {
	if err := p.end(ctx, p.secondary()); err != nil {
		return "", err
	}
	return p.survive(ctx)
}

func (p *pair) freezeSecondary(ctx context.Context) (string, error) {
	if _, err := p.protect(ctx); err != nil {
		return "", err
	}
	if err := syscall.Kill(p.copies[p.secondary()].PID(), syscall.SIGSTOP); err != nil {
		return "", err
	}
	found, err := p.survive(ctx)
	p.mode = blockrepl.Full // what the frozen one holds is not asked for here
	return found, errors.Join(err, p.end(ctx, p.secondary()))
}

// survive makes the primary go on alone.
func (p *pair) survive(ctx context.Context) (string, error) {
	begun := time.Now()
	if err := p.copies[p.primary].Release(ctx); err != nil {
		return "", err
	}
	took := time.Since(begun)
	return "the primary goes on after " + ms(took), p.runs(ctx, p.primary)
}

func (p *pair) killPrimary(ctx context.Context) (string, error) {
	if err := p.end(ctx, p.primary); err != nil {
		return "", err
	}
	return p.promote(ctx)
}

func (p *pair) freezePrimary(ctx context.Context) (string, error) {
	old := p.primary
	if err := syscall.Kill(p.copies[old].PID(), syscall.SIGSTOP); err != nil {
		return "", err
	}
	found, err := p.promote(ctx)
	return found, errors.Join(err, p.end(ctx, old))
}

// promote makes the secondary go on alone.
func (p *pair) promote(ctx context.Context) (string, error) {
	p.primary = p.secondary()
	c, begun := p.copies[p.primary], time.Now()
	if err := c.Promote(ctx); err != nil {
		return "", err
	}
	if err := c.Join(ctx); err != nil {
		return "", err
	}
	took := time.Since(begun)
	if err := errors.Join(c.Announce(ctx), p.runs(ctx, p.primary), c.Commit(ctx)); err != nil {
		return "", err
	}
	return "the secondary takes over after " + ms(took), nil
}

// encrypt protects the VM with a key.
func (p *pair) encrypt(ctx context.Context) (string, error) {
	found, err := p.protect(ctx)
	if err != nil {
		return "", err
	}
	r, err := p.replication(ctx)
	if err == nil && !r.Encrypted {
		err = errors.New("COLO runs, and what it sends is not encrypted")
	}
	return found, err
}

// loseLink cuts the link that connections are made over. A write to the disk, which the peer has to confirm, goes on over the other one.
func (p *pair) loseLink(ctx context.Context) (string, error) {
	if _, err := p.protect(ctx); err != nil {
		return "", err
	}
	for tick := time.Tick(50 * time.Millisecond); ; {
		r, err := p.replication(ctx)
		if err != nil {
			return "", err
		}
		if r.MPTCP && len(r.Links) == len(p.links) {
			break
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return "", fmt.Errorf("the %d connections to the peer never used all links: %v", r.Connections, r.Links)
		}
	}
	if err := p.links[0].Cut(lab.CutSilent); err != nil {
		return "", err
	}
	begun := time.Now()
	err := p.write(ctx)
	took := time.Since(begun)
	return "a write to the disk took " + ms(took) + " over the other one", errors.Join(err, p.links[0].Restore())
}

// resync writes to the disk of a primary that has lost its secondary, and protects it again by sending only that.
func (p *pair) resync(ctx context.Context) (string, error) {
	if err := p.write(ctx); err != nil {
		return "", err
	}
	dirty, ok, err := p.copies[p.primary].BitmapCovers(ctx)
	switch {
	case err != nil:
		return "", err
	case !ok:
		return "", errors.New("no bitmap has recorded what the primary wrote alone")
	case dirty < written || dirty >= diskSize/2:
		return "", fmt.Errorf("the bitmap has %d bytes after a write of %d", dirty, written)
	}
	p.mode = blockrepl.Bitmap
	if _, err := p.protect(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d kB sent of %d kB", dirty>>10, diskSize>>10), nil
}

// compare looks at both images when the last copy has ended: they must hold the same, and what was written.
func (p *pair) compare(ctx context.Context) (string, error) {
	if err := errors.Join(p.end(ctx, 0), p.end(ctx, 1)); err != nil {
		return "", err
	}
	var images [2][]byte
	for i := range images {
		var err error
		if images[i], err = os.ReadFile(filepath.Join(p.dirs[i], disk+".raw")); err != nil {
			return "", err
		}
	}
	switch {
	case !bytes.Equal(images[0], images[1]):
		return "", errors.New("they differ")
	case !bytes.Equal(images[1][place:place+written], bytes.Repeat([]byte{pattern}, written)):
		return "", errors.New("what was written is on neither")
	}
	return "equal, with all that was written", nil
}

// rounds is how many checkpoints are made. QEMUs that can't do it mostly fail at one of the first three.
const rounds = 40

func (p *pair) checkpoints(ctx context.Context) (string, error) {
	if _, err := p.protect(ctx); err != nil {
		return "", err
	}
	c := p.copies[p.primary]
	for i := range rounds {
		// A deadlocked main loop never answers; a slow machine takes a fraction of this.
		one, cancel := context.WithTimeout(ctx, 8*time.Second)
		err := c.Checkpoint(one)
		cancel()
		if err != nil {
			return "", fmt.Errorf("QEMU stands still at checkpoint %d: %w", i+1, err)
		}
	}
	st := c.Stats()
	return fmt.Sprintf("%d, pause %s (p99 %s)", st.Count, ms(st.PauseP50), ms(st.PauseP99)), nil
}
