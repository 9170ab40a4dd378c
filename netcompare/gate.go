package netcompare

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/netns"
)

// ErrNoGate is returned where the kernel has no nftables for single interfaces (nf_tables and its netdev family), or the process may not use it.
var ErrNoGate = errors.New("no gate: the kernel lacks nftables' netdev family")

// gateTable holds everything of the gate in a network namespace: a chain for each guarded tap and one set of leases.
const gateTable = "coloctl"

// leases is the set's name. Its elements are names of taps, and end by themselves.
const leases = "leases"

// nftables opens a socket, which belongs to the namespace that it was opened in.
func (h Host) nftables() (nft *nftables.Conn, err error) {
	err = netns.Do(h.Netns, func() (err error) {
		nft, err = nftables.New(nftables.AsLasting())
		return err
	})
	return nft, err
}

func (h Host) gateError(op, link string, err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w: %w", ErrNoGate, err)
	}
	return &HostError{Op: op, Link: link, Netns: h.Netns, Err: err}
}

// gate runs change in one transaction of the kernel: all of it, or nothing.
func (h Host) gate(ctx context.Context, op, link string, change func(*nftables.Conn, *nftables.Table) error) error {
	if err := ctx.Err(); err != nil {
		return h.gateError(op, link, err)
	}
	nft, err := h.nftables()
	if err != nil {
		return h.gateError(op, link, err)
	}
	err = change(nft, nft.AddTable(&nftables.Table{Name: gateTable, Family: nftables.TableFamilyNetdev}))
	if err == nil {
		err = nft.Flush()
	}
	if err = errors.Join(err, nft.CloseLasting()); err != nil {
		return h.gateError(op, link, err)
	}
	return nil
}

func gateSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: leases, KeyType: nftables.TypeIFName, HasTimeout: true}
}

func leaseKey(tap string) []byte {
	key := make([]byte, unix.IFNAMSIZ)
	copy(key, tap)
	return key
}

// CheckGate tells whether gates can be had here: nil, or an error that matches [ErrNoGate].
func (h Host) CheckGate(ctx context.Context) error {
	return h.gate(ctx, "look for", "nftables", func(nft *nftables.Conn, _ *nftables.Table) error {
		t := nft.AddTable(&nftables.Table{Name: gateTable + "-check", Family: nftables.TableFamilyNetdev})
		err := nft.AddSet(gateSet(t), nil)
		nft.DelTable(t) // in the same transaction
		return err
	})
}

// Guard puts n's tap behind a gate whose lease has not begun: what colo-compare holds by itself when the peer is gone, which is IPv4 without a VLAN tag,
// passes as ever; all other frames of the guest's pass only while [Leases.Lease] says so. Guarding again changes nothing, not even the lease. From Linux 6.16
// on a gate outlives its tap.
func (h Host) Guard(ctx context.Context, n NIC) error {
	return h.gate(ctx, "guard", n.Tap, func(nft *nftables.Conn, t *nftables.Table) error {
		set := gateSet(t)
		if err := nft.AddSet(set, nil); err != nil {
			return err
		}
		c := gateChain(nft, t, n)
		nft.FlushChain(c)
		// The type as it is on the wire: a frame with a VLAN tag has another one, also where the kernel has taken the tag off.
		nft.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 12, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x08, 0x00}},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}})
		nft.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}})
		nft.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}})
		return nil
	})
}

func gateChain(nft *nftables.Conn, t *nftables.Table, n NIC) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return nft.AddChain(&nftables.Chain{
		Name: "gate-" + n.Tap, Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter,
		Device: n.Tap, Policy: &accept,
	})
}

// Leases gives taps their leases through one socket that stays open: this is done ten times a second. The zero value is ready. Its methods may be called concurrently.
type Leases struct {
	mu     sync.Mutex
	nft    *nftables.Conn
	closed bool
}

// Lease lets guarded taps of h speak for d from now on, whatever was said before; 0 ends that at once. The kernel ends it also when nobody runs who could. [Host.Guard]
// must have been called.
func (l *Leases) Lease(ctx context.Context, h Host, nics []NIC, d time.Duration) (err error) {
	if len(nics) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return h.gateError("lease", nics[0].Tap, net.ErrClosed)
	}
	if err = ctx.Err(); err == nil && l.nft == nil {
		l.nft, err = h.nftables()
	}
	if err != nil {
		return h.gateError("lease", nics[0].Tap, err)
	}
	set := gateSet(&nftables.Table{Name: gateTable, Family: nftables.TableFamilyNetdev})
	var long, exact []nftables.SetElement
	for _, n := range nics {
		long = append(long, nftables.SetElement{Key: leaseKey(n.Tap), Timeout: time.Hour})
		exact = append(exact, nftables.SetElement{Key: leaseKey(n.Tap), Timeout: max(d, time.Millisecond)})
	}
	// In one transaction: an element's time can't be changed (before Linux 6.12), and one that may be gone can't be deleted. So: make, delete, make.
	err = errors.Join(l.nft.SetAddElements(set, long), l.nft.SetDeleteElements(set, long))
	if d > 0 {
		err = errors.Join(err, l.nft.SetAddElements(set, exact))
	}
	if err == nil {
		err = l.nft.Flush()
	}
	if err != nil { // the next one begins afresh
		err = errors.Join(err, l.nft.CloseLasting())
		l.nft = nil
		return h.gateError("lease", nics[0].Tap, err)
	}
	return nil
}

// Close closes the socket for good. The leases that were given go on.
func (l *Leases) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.nft == nil {
		return nil
	}
	err := l.nft.CloseLasting()
	l.nft = nil
	return err
}

// Unguard takes the gate away: everything of the guest's passes. A tap without a gate, or a host that can't have any, is no error.
func (h Host) Unguard(ctx context.Context, n NIC) error {
	err := h.gate(ctx, "unguard", n.Tap, func(nft *nftables.Conn, t *nftables.Table) error {
		nft.DelChain(&nftables.Chain{Name: "gate-" + n.Tap, Table: t})
		return nil
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, ErrNoGate) {
		return nil
	}
	return err
}
