package qmp

import (
	"context"
	"errors"
)

// SetColoCapabilities switches on what a migration needs to become COLO. Both
// sides need it, before migrate and before migrate-incoming.
//
// Newer QEMUs allow x-colo only together with return-path, older ones fail the
// migration with it. QEMU's answer decides, not its version. An error must stop
// the protection: to migrate without x-colo makes two VMs of one.
func SetColoCapabilities(ctx context.Context, c *Client) error {
	caps := map[string]bool{"x-colo": true, "events": true, "pause-before-switchover": true}
	err := c.MigrateSetCapabilities(ctx, caps)
	if names(err, "return-path") {
		caps["return-path"] = true
		err = c.MigrateSetCapabilities(ctx, caps)
	}
	var refused *Error
	if errors.As(err, &refused) {
		return &UnsupportedError{Feature: "migration capability x-colo", QEMU: c.greeting.Version.String(), Cause: refused}
	}
	return err
}
