package service

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"regexp"
	"strconv"
	"time"

	ftpserver "github.com/fclairamb/ftpserverlib"
	"github.com/spf13/afero"

	"github.com/coloctl/coloctl/internal/guest/blob"
)

// blobName is the name of a blob as a file: blob-SIZE.bin or blob-SIZE-SEED.bin.
var blobName = regexp.MustCompile(`^/blob-([0-9]{1,15})(?:-([0-9]{1,15}))?\.bin$`)

// BlobPath returns the path by which the FTP service offers a blob.
func BlobPath(size int64, seed uint64) string {
	if seed == 0 {
		return fmt.Sprintf("/blob-%d.bin", size)
	}
	return fmt.Sprintf("/blob-%d-%d.bin", size, seed)
}

// ServeFTP serves blobs read-only to anybody until ctx ends. Every size and
// seed exists (see BlobPath); the listing shows a few. Only passive transfers,
// over ports from first to last, or any free ones if first is 0. It closes l.
func ServeFTP(ctx context.Context, l net.Listener, first, last int) error {
	var passive *ftpserver.PortRange
	if first > 0 {
		passive = &ftpserver.PortRange{Start: first, End: last}
	}
	server := ftpserver.NewFtpServer(&ftpDriver{settings: &ftpserver.Settings{
		Listener:                 l,
		PassiveTransferPortRange: passive,
		Banner:                   "coloctl lab guest",
		IdleTimeout:              900,
		ConnectionTimeout:        30,
		DefaultTransferType:      ftpserver.TransferTypeBinary,
		DisableActiveMode:        true,
		DisableSite:              true,
	}})
	if err := server.Listen(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Stop() })
	defer stop()
	err := server.Serve()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

type ftpDriver struct{ settings *ftpserver.Settings }

func (d *ftpDriver) GetSettings() (*ftpserver.Settings, error) { return d.settings, nil }
func (d *ftpDriver) ClientConnected(ftpserver.ClientContext) (string, error) {
	return d.settings.Banner, nil
}
func (d *ftpDriver) ClientDisconnected(ftpserver.ClientContext) {}
func (d *ftpDriver) AuthUser(ftpserver.ClientContext, string, string) (ftpserver.ClientDriver, error) {
	// The embedded read-only file system refuses all that is not overridden.
	return blobFS{afero.NewReadOnlyFs(afero.NewMemMapFs())}, nil
}
func (d *ftpDriver) GetTLSConfig() (*tls.Config, error) {
	return nil, errors.New("no TLS")
}

// blobFS has the blobs as the only files, all in the root.
type blobFS struct{ afero.Fs }

// Stat implements afero.Fs.
func (blobFS) Stat(name string) (os.FileInfo, error) {
	if path.Clean(name) == "/" {
		return fileInfo{name: "/", mode: fs.ModeDir | 0o555}, nil
	}
	r, err := openBlob(name)
	if err != nil {
		return nil, err
	}
	return fileInfo{name: path.Base(name), size: r.Size(), mode: 0o444}, nil
}

// ReadDir implements ftpserver.ClientDriverExtensionFileList.
func (b blobFS) ReadDir(name string) ([]os.FileInfo, error) {
	if path.Clean(name) != "/" {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrNotExist}
	}
	var infos []os.FileInfo
	for _, size := range []int64{1 << 20, 32 << 20, 700 << 20} {
		info, err := b.Stat(BlobPath(size, 0))
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// GetHandle implements ftpserver.ClientDriverExtentionFileTransfer. The
// server seeks to offset itself.
func (blobFS) GetHandle(name string, flags int, _ int64) (ftpserver.FileTransfer, error) {
	if flags&(os.O_WRONLY|os.O_RDWR) != 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	r, err := openBlob(name)
	if err != nil {
		return nil, err
	}
	return blobFile{r}, nil
}

func openBlob(name string) (*blob.Reader, error) {
	m := blobName.FindStringSubmatch(path.Clean(name))
	if m == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	// The pattern admits only digits, and too few to overflow.
	size, _ := strconv.ParseInt(m[1], 10, 64)
	seed, _ := strconv.ParseUint(m[2], 10, 64)
	return blob.NewReader(size, seed), nil
}

type blobFile struct{ *blob.Reader }

// Write implements io.Writer; the file system is read-only.
func (blobFile) Write([]byte) (int, error) { return 0, fs.ErrPermission }

// Close implements io.Closer.
func (blobFile) Close() error { return nil }

var _ io.WriterTo = blobFile{} // else io.Copy would copy every byte

type fileInfo struct {
	name string
	size int64
	mode fs.FileMode
}

func (f fileInfo) Name() string      { return f.name }
func (f fileInfo) Size() int64       { return f.size }
func (f fileInfo) Mode() fs.FileMode { return f.mode }
func (f fileInfo) IsDir() bool       { return f.mode.IsDir() }
func (f fileInfo) Sys() any          { return nil }

// ModTime is always the same: see the package comment.
func (f fileInfo) ModTime() time.Time { return time.Unix(0, 0).UTC() }
