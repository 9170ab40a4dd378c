package colo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/coloctl/coloctl/state"
)

// Errors of an edited spec.
var (
	// ErrSpecChanged is returned when somebody else has changed the spec since it was read.
	ErrSpecChanged = errors.New("the spec was changed meanwhile")
	// ErrNotWhileRunning is returned for a change that a running guest can't take.
	ErrNotWhileRunning = errors.New("not possible while the VM runs")
)

// Spec returns a VM's spec and a tag that changes with it.
func (n *Node) Spec(vm string) (s *Spec, tag string, err error) {
	m, err := n.machine(vm)
	if err != nil {
		return nil, "", err
	}
	rec, _ := m.info()
	s, err = ParseSpec(rec.Spec, "stored spec of "+vm)
	return s, specTag(rec.Spec), err
}

func specTag(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// editArgs is a request to change a spec.
type editArgs struct {
	spec *Spec
	tag  string
	grow bool // make the images as large as the spec says
}

// Edit replaces a VM's spec. While the VM runs alone only its protection may change, while it is protected nothing. With a tag, the spec must still be
// the one that [Node.Spec] returned with it. The peer gets the new spec when it is next asked to protect the VM.
func (n *Node) Edit(ctx context.Context, vm string, s *Spec, tag string) error {
	if err := s.ofVM(vm); err != nil {
		return err
	}
	return n.ask(ctx, vm, ReqEdit, &editArgs{spec: s, tag: tag})
}

// ofVM checks a new spec of a VM.
func (s *Spec) ofVM(vm string) error {
	if err := s.Validate(); err != nil {
		return err
	}
	if s.Name != vm {
		return &InvalidSpecError{Field: "$.name", Msg: fmt.Sprintf("%q: a VM can't be renamed, this one is %q", s.Name, vm)}
	}
	return nil
}

// CheckEdit tells why Edit would be refused now, and changes nothing.
func (n *Node) CheckEdit(ctx context.Context, vm string, s *Spec, tag string) error {
	if err := s.ofVM(vm); err != nil {
		return err
	}
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	now := m.State()
	if err := m.refused(ReqEdit, nil); err != nil {
		return err
	}
	if _, ok := next(now, ReqEdit, m.holds); !ok {
		return &UnexpectedEventError{VM: vm, State: now, Event: ReqEdit}
	}
	a := &editArgs{spec: s, tag: tag}
	rec, old := m.info()
	runs := m.current() != nil || rec.Instance != nil
	if err := m.editable(a, rec, old, runs); err != nil {
		return err
	}
	return m.fitsHere(ctx, s, runs)
}

// editable compares a new spec with the present one and with the node's other VMs.
func (m *machine) editable(a *editArgs, rec state.VM, old *Spec, runs bool) error {
	if a.tag != "" && a.tag != specTag(rec.Spec) {
		return fmt.Errorf("%s: %w", m.name, ErrSpecChanged)
	}
	if runs && !old.SameMachine(a.spec) {
		return fmt.Errorf("%s: changing anything but its protection, priority and nodes is %w: stop it first", m.name, ErrNotWhileRunning)
	}
	if err := m.n.candidate(a.spec); err != nil {
		return err
	}
	if !runs { // what runs has its room, and its images
		if err := errors.Join(m.n.room(a.spec, false, Limits{}), m.n.imagesFree(a.spec)); err != nil {
			return err
		}
	}
	return m.n.macsFree(a.spec)
}

// fitsHere checks a new spec against this host.
func (m *machine) fitsHere(ctx context.Context, s *Spec, runs bool) error {
	if runs { // its images are in use, by itself
		return m.n.cfg.checkComparer(s)
	}
	return forNew(m.n.launcher.Check(ctx, s))
}

// editPlan checks the new spec against the present one and this host, and stores it.
func (m *machine) editPlan(a *editArgs) *Plan {
	rec, old := m.info()
	runs := m.current() != nil || rec.Instance != nil
	return &Plan{Kind: planEdit, Steps: []Step{
		{Name: "compare with the present spec", Do: func(context.Context) error { return m.editable(a, rec, old, runs) }},
		{Name: "check images, bridges and QEMU", Do: func(ctx context.Context) error {
			if a.grow {
				if err := m.noBackup(); err != nil {
					return err
				}
				// Only this copy may be started from here on: the other one has the old size.
				if err := m.claimStart(ctx); err != nil {
					return err
				}
				if err := m.n.launcher.Grow(ctx, a.spec); err != nil {
					return err
				}
			}
			return m.fitsHere(ctx, a.spec, runs)
		}},
		{Name: "make missing images", Do: func(ctx context.Context) error {
			if runs || rec.Role == state.RoleSecondary {
				return nil
			}
			_, err := m.n.launcher.CreateImages(ctx, a.spec)
			return err
		}},
		{Name: "store the spec", Do: func(ctx context.Context) error {
			text, err := MarshalSpec(a.spec)
			if err != nil {
				return err
			}
			err = m.updateNow(ctx, func(v *state.VM) {
				v.Spec = text
				for name := range v.Disks {
					if !slices.ContainsFunc(a.spec.Disks, func(d DiskSpec) bool { return d.Name == name }) {
						delete(v.Disks, name)
					}
				}
			})
			if err != nil {
				return err
			}
			m.mu.Lock()
			m.spec, m.unread = a.spec, nil
			m.mu.Unlock()
			if c, ok := m.current().(interface{ setProtection(p ProtectionSpec) }); ok {
				c.setProtection(a.spec.Protection)
			}
			return nil
		}},
	}}
}

// SameMachine says whether two valid specs differ at most in what the guest doesn't notice, which is their protection, priority and nodes, so that one may replace the other while the VM runs alone.
func (s *Spec) SameMachine(o *Spec) bool {
	x, y := *s, *o
	for _, z := range []*Spec{&x, &y} {
		z.Protection, z.Priority, z.Preferred, z.Nodes = ProtectionSpec{}, 0, "", nil
	}
	return reflect.DeepEqual(x, y)
}
