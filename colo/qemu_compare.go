package colo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/netcompare"
	"github.com/coloctl/coloctl/netcompare/compare"
	"github.com/coloctl/coloctl/netcompare/comparer"
)

// Comparers.
const (
	ComparerBuiltin = "builtin" // QEMU's colo-compare
	ComparerStream  = "stream"  // netcompare/comparer, a process of the node's for each VM
)

// compareSocket is a QMP socket of the comparer's own.
const compareSocket = "compare.qmp"

// comparerTimeout bounds the start of a comparer. The guest runs meanwhile.
const comparerTimeout = 5 * time.Second

// ErrNoComparer is returned for a spec with NICs that asks for the comparer of streams on a node that doesn't say how to start it.
var ErrNoComparer = errors.New("this node has no comparer of streams")

func (c *NodeConfig) checkComparer(s *Spec) error {
	if c.Launcher == nil && s.Protection.Comparer == ComparerStream && len(s.NICs) > 0 && len(c.Comparer) == 0 {
		return fmt.Errorf("%w: set Comparer in its configuration, or comparer: %s in the spec", ErrNoComparer, ComparerBuiltin)
	}
	return nil
}

func (l *qemuLauncher) keeper(vm string) *comparer.Keeper {
	return &comparer.Keeper{Dir: l.dir(vm), Command: l.cfg.Comparer, Log: l.cfg.Log.With("node", l.cfg.Name, "vm", vm)}
}

// compareOptions are those of netcompare.Connect.
func (c *qemuCopy) compareOptions() netcompare.Options {
	p := c.protection.Load()
	return netcompare.Options{
		SocketDir: c.dir, CompareTimeout: time.Duration(p.CompareTimeout), ExpiredScanCycle: time.Duration(p.ExpiredScanCycle),
		External: p.Comparer == ComparerStream,
	}
}

// setProtection is what an edited spec says; it counts from the next attach.
func (c *qemuCopy) setProtection(p ProtectionSpec) { c.protection.Store(&p) }

// startComparer starts the process that compares, if the VM has one.
func (c *qemuCopy) startComparer(ctx context.Context) error {
	p := c.protection.Load()
	if p.Comparer != ComparerStream || len(c.nics) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, comparerTimeout, fmt.Errorf("not there after %v (a QEMU that an older version has started has no socket for it: stop and start the VM)", comparerTimeout))
	defer cancel()
	k := c.l.keeper(c.spec.Name)
	if err := k.Start(ctx, comparer.Config{
		VM: c.spec.Name, QMP: filepath.Join(c.dir, compareSocket), NICs: netcompare.ComparerNICs(c.nics, c.compareOptions()), Settings: p.settings(),
		Term: p.term(&c.l.cfg),
	}); err != nil {
		return err
	}
	c.keeper.Store(k)
	return nil
}

// Sure tells the comparer, if there is one, that the peer's copy is a secondary until then.
func (c *qemuCopy) Sure(until time.Time) error {
	if k := c.keeper.Load(); k != nil {
		return k.Until(until)
	}
	return nil
}

func (p *ProtectionSpec) settings() comparer.Settings {
	s := comparer.Settings{Delay: time.Duration(p.CheckpointDelay), Timeout: time.Duration(p.CompareTimeout), Rest: profiles[p.Profile].rest}
	for _, r := range p.Compare {
		if rule, err := r.rule(); err == nil { // validated
			s.Rules = append(s.Rules, rule)
		}
	}
	return s
}

// adoptComparer takes over the one that an earlier run of the node has started.
func (c *qemuCopy) adoptComparer() {
	if k := c.l.keeper(c.spec.Name); len(k.Command) > 0 && k.Adopt() {
		c.keeper.Store(k)
	}
}

// missed finds out which writes to halves of disks failed while no daemon ran: QEMU has told its comparer, which outlives the daemon. A half of this
// node's is taken out of the guest's way at once; one of the peer's is returned. A VM without a comparer of streams has nobody who would know.
func (c *qemuCopy) missed(ctx context.Context) (peer string) {
	k := c.keeper.Load()
	if k == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, comparerTimeout)
	defer cancel()
	client := k.Client()
	defer client.Close()
	s, err := client.Status(ctx)
	if err != nil {
		c.log.Warn("whether a disk has failed meanwhile is not known: verify them", "err", err)
		return ""
	}
	for _, node := range s.FailedWrites {
		if slices.Contains(blockrepl.YankNodes(c.disks), node) {
			peer = node
			continue
		}
		for _, d := range c.disks {
			if !slices.Contains(blockrepl.LocalNodes(d), node) {
				continue
			}
			if err := blockrepl.DropLocal(ctx, c.main, d); err != nil {
				c.log.Error("a disk that has failed could not be taken out of the guest's way", "disk", d.Name, "err", err)
			}
		}
	}
	return peer
}

// stopComparer ends it. From then on the guest's packets are dropped until the filters are gone.
func (c *qemuCopy) stopComparer(ctx context.Context) error {
	if k := c.keeper.Swap(nil); k != nil {
		return k.Stop(ctx)
	}
	return nil
}

// CompareRule says of some of a VM's network flows whether the comparer of streams compares them.
type CompareRule struct {
	Protocol   string `yaml:"protocol,omitempty" json:"protocol,omitempty"`       // tcp, udp or icmp; empty is any over IP
	GuestPort  int    `yaml:"guest-port,omitempty" json:"guest_port,omitempty"`   // 0 is any
	RemotePort int    `yaml:"remote-port,omitempty" json:"remote_port,omitempty"` // 0 is any
	Remote     string `yaml:"remote,omitempty" json:"remote,omitempty"`           // addresses of the other end, such as 10.1.0.0/16; empty is any
	Pass       bool   `yaml:"pass" json:"pass"`                                   // true lets them leave at once, unseen
}

func (r *CompareRule) rule() (compare.Rule, error) {
	out := compare.Rule{Protocol: r.Protocol, Guest: uint16(r.GuestPort), RemotePort: uint16(r.RemotePort), Pass: r.Pass} //nolint:gosec // validated
	if r.Remote == "" {
		return out, out.Check()
	}
	remote, err := netip.ParsePrefix(r.Remote)
	out.Remote = remote
	return out, errors.Join(err, out.Check())
}

func (p *ProtectionSpec) validateComparer(bad func(string, string, ...any)) {
	if p.Comparer != ComparerBuiltin && p.Comparer != ComparerStream {
		bad("protection.comparer", "%q: expected %s or %s", p.Comparer, ComparerBuiltin, ComparerStream)
	}
	if len(p.Compare) > 0 && p.Comparer == ComparerBuiltin {
		bad("protection.compare", "rules need comparer: %s", ComparerStream)
	}
	for i, r := range p.Compare {
		at := fmt.Sprintf("protection.compare[%d]", i)
		if r.GuestPort < 0 || r.GuestPort > 65535 || r.RemotePort < 0 || r.RemotePort > 65535 {
			bad(at, "a port is 1 to 65535")
		}
		if _, err := r.rule(); err != nil {
			bad(at, "%v", err)
		}
	}
}
