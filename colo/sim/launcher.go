package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/state"
)

// launcher starts QEMUs on a host. Check and CreateImages take no time: the engine calls them with a lock held.
type launcher struct{ e *env }

func (l launcher) Check(context.Context, *colo.Spec) error {
	l.e.w.mu.Lock()
	defer l.e.w.mu.Unlock()
	if !l.e.h.made {
		return colo.ErrImageMissing
	}
	return nil
}

func (l launcher) Grow(context.Context, *colo.Spec) error { return nil }
func (l launcher) CreateImages(context.Context, *colo.Spec) ([]string, error) {
	l.e.w.mu.Lock()
	defer l.e.w.mu.Unlock()
	if l.e.h.made {
		return nil, nil
	}
	l.e.h.made = true
	return []string{"vda.raw"}, nil
}

func (l launcher) Launch(ctx context.Context, r colo.LaunchRequest) (colo.Copy, error) {
	e := l.e
	var p *proc
	err := e.do(ctx, opLaunch, 5*ms, 20*ms, func() error {
		if o := e.h.proc; o != nil {
			if slices.ContainsFunc(o.copies, func(c *simCopy) bool { return c.e == e }) {
				return errors.New("the image is in use by another QEMU")
			}
			o.die() // left by a daemon that was killed, and forgotten: its pidfile names it
		}
		e.h.joined = false
		p = e.h.newProc(r.Standby)
		if r.Standby {
			e.h.loose = nil // the images are made durable
		}
		return nil
	})
	if err == nil { // now its sockets
		err = e.doOn(ctx, opQMP, p, 10*ms, 50*ms, func() error { return nil })
	}
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	if err == nil && e.gone {
		err = errGone
	}
	if err != nil {
		if p != nil && !e.gone {
			p.die()
		}
		return nil, err
	}
	return newCopy(e, p), nil
}

func (l launcher) Attach(ctx context.Context, _ *colo.Spec, i state.Instance) (colo.Copy, colo.View, error) {
	e := l.e
	e.w.mu.Lock()
	p := e.h.proc
	e.w.mu.Unlock()
	if p == nil || p.id != i.PID || fmt.Sprint(p.boot) != i.BootID {
		return nil, colo.View{}, e.begin()
	}
	var c *simCopy
	var v colo.View
	actx, cancel := context.WithTimeout(ctx, launchTimeout)
	defer cancel()
	err := e.doOn(actx, opAttach, p, 5*ms, 20*ms, func() error {
		c = newCopy(e, p)
		// A job that copies the disk puts a filter into QEMU's graph. That was once taken for a half that is gone, and may be again.
		gone := p.halfGone || p.sess != nil && p.sess.p == p && p.sess.stage < switched
		v = colo.View{Mode: p.mode, Gone: map[bool][]string{true: {"vda"}}[gone], Incoming: p.standby && p.mode == "none", Off: p.off, Cut: !e.h.joined}
		return nil
	})
	if err == nil {
		return c, v, nil
	}
	return nil, colo.View{}, err
}

const launchTimeout = 20_000 * ms

func (l launcher) End(ctx context.Context, _ *colo.Spec, i state.Instance) error {
	return l.e.do(ctx, opKill, ms, 5*ms, func() error {
		if p := l.e.h.proc; p != nil && p.id == i.PID && fmt.Sprint(p.boot) == i.BootID {
			p.die()
		}
		return nil
	})
}

func (l launcher) Clear(ctx context.Context, _ *colo.Spec) error {
	return l.e.do(ctx, opClear, ms, 5*ms, func() error { l.e.h.joined = false; return nil })
}

func (l launcher) Remove(ctx context.Context, _ *colo.Spec, images bool) error {
	return l.e.do(ctx, opClear, ms, 5*ms, func() error {
		l.e.h.joined = false
		if images {
			l.e.h.made, l.e.h.lacks, l.e.h.image = false, false, image{}
		}
		return nil
	})
}
