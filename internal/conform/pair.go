package conform

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
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
			// Checkpoints come when they are asked for: some QEMUs can do everything but a second one. QEMU's own comparer is part of what is tried.
			Protection: colo.ProtectionSpec{CheckpointDelay: colo.Duration(5 * time.Minute), Comparer: colo.ComparerBuiltin},
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

// ask speaks to a copy by the socket that is for people: the others are the launcher's own.
func (p *pair) ask(ctx context.Context, i int, do func(*qmp.Client) error) error {
	c, err := qmp.Dial(ctx, filepath.Join(p.dirs[i], "run", vm, "monitor"), nil)
	if err != nil {
		return err
	}
	return errors.Join(do(c), c.Close())
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

func ms(d time.Duration) string { return fmt.Sprintf("%.0f ms", float64(d.Microseconds())/1000) }
