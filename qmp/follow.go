package qmp

import "context"

// MachineStatus is what has to be asked again after events were lost.
type MachineStatus struct {
	Status    Status
	Colo      ColoStatus // zero if this QEMU has no COLO
	Migration Migration
	BlockJobs []BlockJob
}

// MachineStatus asks for it. The parts are asked one after the other, so they
// may be of different moments.
func (c *Client) MachineStatus(ctx context.Context) (MachineStatus, error) {
	var m MachineStatus
	var err error
	if m.Status, err = c.QueryStatus(ctx); err != nil {
		return m, err
	}
	if m.Colo, err = c.QueryColoStatus(ctx); err != nil && !IsClass(err, ClassCommandNotFound) {
		return m, err
	}
	if m.Migration, err = c.QueryMigrate(ctx); err != nil {
		return m, err
	}
	m.BlockJobs, err = c.QueryBlockJobs(ctx)
	return m, err
}

// Follow keeps a view of QEMU's state right. It calls query at the beginning
// and again whenever events were lost, and handle for each event; never two of
// them at a time. An event may tell what query has seen already. It returns when
// one of them fails, when ctx ends or when the connection does.
func (c *Client) Follow(ctx context.Context, o SubscribeOptions, query func(context.Context) error, handle func(Event) error) error {
	sub := c.Subscribe(o)
	defer sub.Close()
	if err := query(ctx); err != nil {
		return err
	}
	for {
		select {
		case <-sub.Lost(): // before the events that are left
			if err := query(ctx); err != nil {
				return err
			}
			continue
		default:
		}
		select {
		case <-sub.Lost():
			if err := query(ctx); err != nil {
				return err
			}
		case e, ok := <-sub.C():
			if !ok {
				return c.Err()
			}
			if err := handle(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return &WaitError{Cause: ctx.Err()}
		}
	}
}
