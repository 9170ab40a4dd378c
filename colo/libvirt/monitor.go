package libvirt

import (
	"context"
	"errors"
	"fmt"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/coloctl/coloctl/qmp"
)

// commandTimeout is how long libvirtd and QEMU may take for a command that only looks. libvirtd itself waits for ever for a QEMU that was stopped.
const commandTimeout = 15 * time.Second

// OpenMonitor returns a client of the QEMU of a running domain, through libvirt's own monitor. libvirt marks the domain as tainted by it. Close it when
// done; it ends by itself when libvirtd does, or when a command isn't answered in time.
func OpenMonitor(ctx context.Context, a Address, domain string) (qmp.Degraded, error) {
	c, err := Dial(ctx, a)
	if err != nil {
		return qmp.Degraded{}, err
	}
	p := &passthrough{c: c, out: make(chan qmp.PassthroughEvent)}
	if p.dom, err = c.lookup(ctx, domain); err != nil {
		return qmp.Degraded{}, errors.Join(err, c.Close())
	}
	if err := p.subscribe(ctx, domain); err != nil {
		return qmp.Degraded{}, errors.Join(err, c.Close())
	}
	return qmp.NewPassthrough(ctx, p, commandTimeout, &qmp.Options{Name: domain + " by libvirt"})
}

// passthrough implements qmp.Passthrough.
type passthrough struct {
	c    *Conn
	dom  golibvirt.Domain
	out  chan qmp.PassthroughEvent
	stop context.CancelFunc
}

// subscribe asks for the domain's events. go-libvirt hands each to a channel and waits for its reader, also after its context has ended, so the reader
// goes on until the channel is closed.
func (p *passthrough) subscribe(ctx context.Context, domain string) error {
	var in <-chan golibvirt.DomainEvent
	var life context.Context
	life, p.stop = context.WithCancel(context.WithoutCancel(ctx))
	err := p.c.call(ctx, "follow the events of domain "+domain, func(l *golibvirt.Libvirt) (err error) {
		in, err = l.SubscribeQEMUEvents(life, domain)
		return err
	})
	if err != nil {
		p.stop()
		return err
	}
	go func() {
		defer close(p.out)
		for e := range in {
			out := qmp.PassthroughEvent{Name: e.Event, Data: e.Details, Time: time.Unix(int64(e.Seconds), int64(e.Microseconds)*1000)}
			select {
			case p.out <- out:
			case <-life.Done(): // nobody reads any more
			}
		}
	}()
	return nil
}

func (p *passthrough) Events() <-chan qmp.PassthroughEvent { return p.out }

// Command implements qmp.Passthrough. QEMU's refusal is part of the reply; an error of libvirt's means that QEMU was not asked.
func (p *passthrough) Command(ctx context.Context, command []byte) ([]byte, error) {
	var reply string
	err := p.c.call(ctx, "pass a command to QEMU", func(l *golibvirt.Libvirt) (err error) {
		reply, err = l.QEMUDomainMonitorCommand(p.dom, string(command), 0)
		return err
	})
	var refused *Error
	if errors.As(err, &refused) {
		return nil, fmt.Errorf("%w: %w", qmp.ErrPassthroughRefused, err)
	}
	return []byte(reply), err
}

func (p *passthrough) Close() error {
	p.stop()
	return p.c.Close()
}
