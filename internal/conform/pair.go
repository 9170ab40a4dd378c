package conform

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/qmp"
)

const (
	vm       = "vm"
	disk     = "vda"
	diskSize = 16 << 20
	keySize  = 32 // bytes
)

// pair is a VM's two copies. p.primary says which of the hosts has the one that runs, or is to.
type pair struct {
	spec    *colo.Spec
	launch  [2]colo.Launcher
	dirs    [2]string
	links   []*lab.Link
	at      [2]colo.Endpoint // where a standby on the host listens
	copies  [2]colo.Copy
	gone    []chan struct{} // closed when nobody reads a copy's events any more
	primary int
	mode    blockrepl.Mode // of the next attach
}

func newPair(ctx context.Context, o Options, s story, top *lab.Topology, number int) (*pair, error) {
	p := &pair{
		mode: blockrepl.Full, links: top.Links,
		spec: &colo.Spec{
			Name: vm, Memory: 64 << 20, CPU: "qemu64",
			Disks: []colo.DiskSpec{{Name: disk, File: disk + ".raw", Size: diskSize}},
			NICs:  []colo.NICSpec{{Name: "net0", Bridge: lab.NodeBridge, MAC: "52:54:00:12:34:56"}},
			// Checkpoints come when they are asked for: some QEMUs can do everything but a second one.
			Protection: colo.ProtectionSpec{CheckpointDelay: colo.Duration(5 * time.Minute)},
		},
	}
	if err := p.spec.Validate(); err != nil {
		return nil, err
	}
	for i, host := range lab.NodeNames {
		p.dirs[i] = filepath.Join(o.Dir, fmt.Sprint(number), host)
		if err := os.MkdirAll(p.dirs[i], 0o700); err != nil {
			return nil, err
		}
		var own []colo.Link
		var paths []colo.Path
		for _, l := range top.Links {
			own = append(own, colo.Link{Name: l.Name, Address: l.Addrs[host].Addr()})
			paths = append(paths, colo.Path{Host: l.Addrs[host].Addr().String(), Primary: l.Addrs[lab.Other(host)].Addr().String()})
		}
		p.at[i] = colo.Endpoint{Host: paths[0].Host, Primary: paths[0].Primary, Migration: 9000, NBD: 9001,
			NICs: map[string]colo.NICPorts{"net0": {Mirror: 9002, Compare: 9003}}}
		if s.multipath {
			p.at[i].MPTCP, p.at[i].More = true, paths[1:]
		}
		if s.encrypted {
			p.at[i].Key = make(colo.Key, keySize)
			if _, err := rand.Read(p.at[i].Key); err != nil {
				return nil, err
			}
		}
		var err error
		if p.launch[i], err = colo.NewLauncher(ctx, colo.NodeConfig{
			Name: host, RunDir: filepath.Join(p.dirs[i], "run"), StorageDir: p.dirs[i], Netns: top.Nodes[host].Netns(), Links: own,
			Ports: colo.PortRange{First: 9000, Last: 9099}, Plain: !s.encrypted,
			QEMU: o.QEMU, QEMUImg: o.QEMUImg, Accel: o.Accel, BitmapRotation: -1, Log: slog.New(slog.DiscardHandler),
		}); err != nil {
			return nil, err
		}
		if _, err := p.launch[i].CreateImages(ctx, p.spec); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// multipath says why this host can't use several links at once.
func (p *pair) multipath() error {
	if m, ok := p.launch[0].(interface{ Multipath() error }); ok {
		return m.Multipath()
	}
	return errors.ErrUnsupported
}

// start launches a copy and reads its events from then on.
func (p *pair) start(ctx context.Context, i int, standby bool) (colo.Copy, error) {
	c, err := p.launch[i].Launch(ctx, colo.LaunchRequest{Spec: p.spec, ID: vm, Standby: standby})
	if err != nil {
		return nil, err
	}
	p.copies[i] = c
	read := make(chan struct{})
	p.gone = append(p.gone, read)
	go func() {
		defer close(read)
		for range c.Events() { // what is waited for here, the copy's methods tell themselves
		}
	}()
	return c, nil
}

// end kills the copy of a host, which may be frozen, and removes what it leaves.
func (p *pair) end(ctx context.Context, i int) error {
	c := p.copies[i]
	if c == nil {
		return nil
	}
	p.copies[i] = nil
	return errors.Join(c.Kill(ctx), p.launch[i].Clear(ctx, p.spec))
}

func (p *pair) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	err := errors.Join(p.end(ctx, 0), p.end(ctx, 1))
	for _, read := range p.gone {
		<-read
	}
	return err
}

// secondary is the host of the other copy.
func (p *pair) secondary() int { return 1 - p.primary }

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

// ask speaks to a copy by the socket that is for people: the others are the launcher's own.
func (p *pair) ask(ctx context.Context, i int, do func(*qmp.Client) error) error {
	c, err := qmp.Dial(ctx, filepath.Join(p.dirs[i], "run", vm, "monitor"), nil)
	if err != nil {
		return err
	}
	return errors.Join(do(c), c.Close())
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

// runs makes sure that a copy that was left alone answers and runs.
func (p *pair) runs(ctx context.Context, i int) error {
	return p.ask(ctx, i, func(c *qmp.Client) error {
		st, err := c.QueryStatus(ctx)
		if err == nil && !st.Running {
			err = fmt.Errorf("its guest is %s", st.Status)
		}
		return err
	})
}

const (
	written = 3 << 16 // bytes that resync finds written: whole parts of a bitmap
	place   = 1 << 20
	pattern = 0x5a
)

// write writes to the primary's disk, as its guest would, and is content only when all halves of it have taken that.
func (p *pair) write(ctx context.Context) error {
	return p.ask(ctx, p.primary, func(c *qmp.Client) error {
		bad := c.Subscribe(qmp.SubscribeOptions{Match: qmp.Named("QUORUM_REPORT_BAD")})
		defer bad.Close()
		var said string
		line := fmt.Sprintf(`qemu-io -d /machine/peripheral/blk-%s/virtio-backend "write -P %d %d %d"`, disk, pattern, place, written)
		err := c.Execute(ctx, "human-monitor-command", map[string]string{"command-line": line}, &said)
		// What it says of a success goes to QEMU's standard output.
		if said = strings.TrimSpace(said); err == nil && said != "" {
			err = fmt.Errorf("qemu-io: %s", said)
		}
		select {
		case <-bad.C(): // it came before the answer
			err = errors.Join(err, errors.New("one half of the disk has not taken a write"))
		default:
		}
		return err
	})
}

// replication is what the primary's connections to the peer are.
func (p *pair) replication(ctx context.Context) (*colo.Replication, error) {
	c, ok := p.copies[p.primary].(interface {
		Replication(ctx context.Context) (*colo.Replication, error)
	})
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return c.Replication(ctx)
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

func ms(d time.Duration) string { return fmt.Sprintf("%.0f ms", float64(d.Microseconds())/1000) }
