package api

import (
	"context"
	"net/url"

	"github.com/coloctl/coloctl/colo"
)

// Backup copies all disks of a VM that runs on this node, as they are at one moment, to a folder there or to an NBD server.
func (c *Client) Backup(ctx context.Context, vm string, r BackupRequest) (Operation, error) {
	return c.act(ctx, vm, "backup", r)
}

// Export copies one disk of a VM to a file on this node.
func (c *Client) Export(ctx context.Context, vm string, r ExportRequest) (Operation, error) {
	return c.act(ctx, vm, "export", r)
}

// Restore makes a VM of a backup on this node, and returns when its images are there.
func (c *Client) Restore(ctx context.Context, r RestoreRequest) (out VM, err error) {
	err = c.post(ctx, "restore", nil, r, &out)
	return out, err
}

// CheckRestore tells why Restore would be refused now.
func (c *Client) CheckRestore(ctx context.Context, r RestoreRequest) error {
	return c.post(ctx, "restore", dryQuery(), r, nil)
}

func (c *Client) post(ctx context.Context, what string, q url.Values, in, out any) error {
	body, err := jsonBody(in)
	if err == nil {
		_, err = c.do(ctx, &call{method: "POST", path: []string{"v1", what}, query: q, body: body}, out)
	}
	return err
}

// MakeImage makes an image in the node's storage folder, empty or as a copy.
func (c *Client) MakeImage(ctx context.Context, r ImageRequest) (out colo.Image, err error) {
	err = c.post(ctx, "images", nil, r, &out)
	return out, err
}

// CheckImage tells why MakeImage would be refused now.
func (c *Client) CheckImage(ctx context.Context, r ImageRequest) error {
	return c.post(ctx, "images", dryQuery(), r, nil)
}

// Disks looks at the images of a VM's disks on this node.
func (c *Client) Disks(ctx context.Context, vm string) ([]colo.DiskInfo, error) {
	var out DiskList
	_, err := c.do(ctx, &call{method: "GET", path: []string{"v1", "vms", vm, "disks"}}, &out)
	return out.Disks, err
}

// DiskResize grows a disk of a VM that is switched off.
func (c *Client) DiskResize(ctx context.Context, vm, disk string, r ResizeRequest) error {
	return c.resize(ctx, vm, disk, nil, r)
}

// CheckResize tells why DiskResize would be refused now.
func (c *Client) CheckResize(ctx context.Context, vm, disk string, r ResizeRequest) error {
	return c.resize(ctx, vm, disk, dryQuery(), r)
}

func (c *Client) resize(ctx context.Context, vm, disk string, q url.Values, r ResizeRequest) error {
	body, err := jsonBody(r)
	if err == nil {
		_, err = c.do(ctx, &call{method: "POST", path: []string{"v1", "vms", vm, "disks", disk, "resize"}, query: q, body: body}, nil)
	}
	return err
}
