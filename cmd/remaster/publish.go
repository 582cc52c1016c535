package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"remaster/internal/hint"
	"remaster/pkg/disk"
	"remaster/pkg/importer"
	"remaster/pkg/remaster"
)

// uploadFlags say how an object is written.
type uploadFlags struct {
	put        importer.PutOptions
	workers    int
	partSize   int64
	bandwidth  int64
	journalDir string
	keep       bool
}

func (f *uploadFlags) add(cmd *cobra.Command) {
	p, fl := &f.put, cmd.Flags()
	fl.StringVar(&p.Encryption, "encryption", "", "encrypt the object on the server: `AES256`, KMS or SM4")
	fl.StringVar(&p.KMSKeyID, "kms-key-id", "", "key for --encryption KMS")
	fl.StringVar(&p.StorageClass, "storage-class", "", "storage class of the object (default: the bucket's)")
	fl.StringToStringVar(&p.Tags, "object-tag", nil, "tag the object with `KEY=VALUE`")
	fl.BoolVar(&p.ForbidOverwrite, "forbid-overwrite", false, "fail if there is another object of that key")
	fl.IntVar(&f.workers, "workers", 8, "`N` parts in flight")
	fl.Int64Var(&f.partSize, "part-size", 0, "size of parts in `BYTES` (default: by the object's size)")
	fl.Int64Var(&f.bandwidth, "bandwidth", 0, "send at most so many `BYTES` a second")
	fl.StringVar(&f.journalDir, "journal-dir", "", "`FOLDER` that remembers uploads under way (default: the user's cache)")
	fl.BoolVar(&f.keep, "keep-upload", false, "when interrupted, leave the upload to be gone on with")
}

// options returns the options of one upload.
func (f *uploadFlags) options(c *cloud, identity string) importer.UploadOptions {
	dir := f.journalDir
	if dir == "" {
		if cache, err := os.UserCacheDir(); err == nil {
			dir = filepath.Join(cache, "remaster", "uploads")
		}
	}
	return importer.UploadOptions{
		PutOptions: f.put, Identity: identity, JournalDir: dir, Keep: f.keep,
		Workers: f.workers, PartSize: f.partSize, BytesPerSecond: f.bandwidth, Clock: c.clock,
	}
}

// imageFlags say what image is made of an object, and what comes after.
type imageFlags struct {
	request      importer.ImportRequest
	check        bool
	after        importer.After
	copyTo       []string
	onExist      string
	disposal     string
	timeout      time.Duration
	poll         time.Duration
	checkTimeout time.Duration
}

func (f *imageFlags) add(cmd *cobra.Command) {
	r, fl := &f.request, cmd.Flags()
	fl.StringVar(&r.Name, "name", "", "`NAME` of the image")
	fl.StringVar(&r.Description, "description", "", "description of the image")
	fl.StringVar(&r.Platform, "platform", "", "operating system in ECS's words (default: by the image, Aliyun for Alibaba Cloud Linux)")
	fl.StringVar(&r.Architecture, "architecture", "", "x86_64 or arm64 (default: by the image)")
	fl.StringVar(&r.BootMode, "boot-mode", "", "BIOS or UEFI (default: by the image)")
	fl.StringVar(&r.OSType, "os-type", "", "linux (the default)")
	fl.IntVar(&r.DiskSizeGiB, "system-disk-size", 0, "size of the system disk in `GIB` (default: the image's)")
	fl.StringVar(&r.LicenseType, "license-type", "", "Auto, Aliyun or BYOL")
	fl.StringVar(&r.RoleName, "role-name", "", "RAM role that ECS reads the object with")
	fl.StringVar(&r.ResourceGroup, "resource-group", "", "resource group of the image")
	fl.StringVar(&r.NVMe, "nvme", "", "say that the image is `supported` or unsupported on NVMe disks")
	fl.StringVar(&r.IMDS, "imds", "", "metadata service of instances: v1 or v2")
	fl.StringToStringVar(&r.Tags, "tag", nil, "tag the image with `KEY=VALUE`")
	fl.BoolVar(&f.check, "image-check", false, "have ECS check the image after the import, and show what it finds")
	fl.StringVar(&f.onExist, "on-exist", "fail", "if another image has the name: fail, reuse, replace or suffix")
	fl.StringSliceVar(&f.copyTo, "copy-to", nil, "copy the image to `REGION`s")
	fl.StringSliceVar(&f.after.Share, "share", nil, "share the image with `ACCOUNT`s")
	fl.StringVar(&f.after.Family, "family", "", "image family that the image joins")
	fl.StringVar(&f.disposal, "predecessor", "", "what becomes of the images that this one takes over from: keep, deprecate or delete (with snapshots)")
	fl.StringSliceVar(&f.after.Predecessors, "replaces", nil, "`IMAGE`s (id or name) that this one takes over from")
	fl.BoolVar(&f.after.OlderOfFamily, "replaces-family", false, "take over from all older images of the family that remaster made")
	fl.BoolVar(&f.after.Force, "force-delete", false, "delete predecessors that instances were made of")
	fl.BoolVar(&f.after.DeleteObject, "delete-object", false, "delete the object when the image is there")
	fl.DurationVar(&f.timeout, "timeout", 2*time.Hour, "give up waiting after this time; a rerun goes on")
	fl.DurationVar(&f.poll, "poll", 15*time.Second, "time between two looks at what is under way")
	fl.DurationVar(&f.checkTimeout, "image-check-timeout", 10*time.Minute, "wait so long for --image-check")
}

var errNoName = usagef("the image needs a name: --name NAME")

// spec returns what to import, and what comes after.
func (f *imageFlags) spec(region string, o importer.Object, facts importer.ImageFacts, content string) (importer.ImageSpec, importer.After, error) {
	s := importer.ImageSpec{ImportRequest: f.request, Facts: facts, Content: content}
	s.Region, s.Object = region, o
	if f.check {
		s.Detection = "Standard"
	}
	a := f.after
	var err error
	if a.Predecessor, err = importer.ParseDisposal(f.disposal); err != nil {
		return s, a, usageError{err}
	}
	for _, r := range f.copyTo {
		a.Copies = append(a.Copies, importer.Copy{Region: r})
	}
	if s.Name == "" {
		return s, a, errNoName
	}
	return s, a, nil
}

func (f *imageFlags) options(c *cloud) (importer.Options, error) {
	exist, err := importer.ParseOnExist(f.onExist)
	if err != nil {
		return importer.Options{}, usageError{err}
	}
	o := importer.Options{Clock: c.clock, Poll: f.poll, Timeout: f.timeout, OnExist: exist, Log: c.log}
	if f.check {
		o.CheckTimeout = f.checkTimeout
	}
	return o, nil
}

// published is what publish and upload print with --json.
type published struct {
	Object   string             `json:"object"`
	Upload   *uploadDoc         `json:"upload,omitempty"`
	Image    *importer.Report   `json:"image,omitempty"`
	Problems []importer.Problem `json:"problems,omitempty"`
	Plan     *remaster.Document `json:"plan,omitempty"`
}

type uploadDoc struct {
	Way         importer.Way `json:"way"`
	Why         string       `json:"why,omitempty"`
	Size        int64        `json:"size"`
	Sent        int64        `json:"sent"`
	Copied      int64        `json:"copied"`
	Reused      int64        `json:"reused"`
	Fetched     int64        `json:"fetched"`
	Parts       int          `json:"parts"`
	CopiedParts int          `json:"copiedParts"`
	ReusedParts int          `json:"reusedParts"`
	CRC64       string       `json:"crc64,omitempty"`
	Checked     bool         `json:"checked"`
	Seconds     float64      `json:"seconds"`
}

func newUploadDoc(r importer.UploadReport) *uploadDoc {
	d := &uploadDoc{
		Way: r.Way, Why: r.Why, Size: r.Object.Size, Sent: r.Sent, Copied: r.Copied, Reused: r.Reused, Fetched: r.Fetched,
		Parts: r.Parts, CopiedParts: r.CopiedParts, ReusedParts: r.ReusedParts, Checked: r.Checked, Seconds: r.Duration.Seconds(),
	}
	if r.HasCRC64 {
		d.CRC64 = fmt.Sprintf("%016x", r.CRC64)
	}
	return d
}

// output is a Blob that is to become an object.
type output struct {
	blob     disk.Blob
	identity string
	format   remaster.Format
	base     *remaster.Base
	fetched  func() int64
}

func (a *app) publish() *cobra.Command {
	var p publisher
	cmd := &cobra.Command{
		Use:   "publish BASE --bucket BUCKET --name NAME",
		Short: "Build a node image, upload it and import it as an ECS image",
		Long: `Build a node image of BASE – a file or oss://BUCKET/KEY – straight into an object, have
ECS import it, and wait until it can be used. No temporary file is written. If BASE
is an object in the bucket's region, what did not change is copied within OSS.

Everything may be asked for again: what is done is found and left alone, and a rerun
prints the same image. Standard output is the id of the image, or JSON.`,
		Example: "  remaster publish alinux3.qcow2 --bucket images --name node-v2 --region cn-hangzhou\n  remaster publish oss://images/alinux3.qcow2 --bucket images --name node-v2 --copy-to cn-beijing",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			p.app = a
			return p.run(cmd.Context(), argv[0])
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&p.bucket, "bucket", "", "`BUCKET` for the object (default: that of a BASE in OSS)")
	fl.StringVar(&p.key, "key", "", "`KEY` of the object (default: made of what is in it)")
	fl.StringVar(&p.prefix, "key-prefix", "remaster", "`PREFIX` of keys that are made")
	fl.StringVar(&p.format, "format", "", "`FORMAT` of the object: qcow2, vhd, vhd-fixed or raw (default: that of BASE)")
	fl.BoolVar(&p.noBuild, "no-build", false, "publish BASE as it is")
	fl.BoolVar(&p.asJSON, "json", false, "print what was done as JSON")
	p.cloud.add(cmd)
	p.recipe.add(cmd)
	p.upload.add(cmd)
	p.image.add(cmd)
	return cmd
}

// publisher is one run of publish.
type publisher struct {
	*app
	cloud  cloudFlags
	recipe recipeFlags
	upload uploadFlags
	image  imageFlags

	bucket, key, prefix, format string
	noBuild, asJSON             bool
	doc                         published
}

func (p *publisher) run(ctx context.Context, name string) error {
	if p.image.request.Name == "" {
		return errNoName
	}
	c, region, err := p.cloud.openRegion(p.app)
	if err != nil {
		return err
	}
	b, err := c.openAny(ctx, p.app, name, p.recipe.inFormat)
	if err != nil {
		return err
	}
	if p.bucket == "" && b.object != nil {
		p.bucket = b.object.Info.Bucket
	}
	if p.bucket == "" {
		return errors.Join(usagef("the object needs a bucket: --bucket BUCKET"), b.Close())
	}
	j, out, facts, err := p.make(ctx, b)
	if err != nil {
		return err
	}
	defer j.Close()
	dst := importer.Object{Bucket: p.bucket, Key: p.key}
	options := p.upload.options(c, out.identity)
	if dst.Key == "" {
		dst.Key = remaster.Key(p.prefix, out.identity, p.image.request.Name, out.format)
		options.OwnKey = true
	}
	p.doc.Object = dst.String()
	opts, err := p.image.options(c)
	if err != nil {
		return err
	}
	store, err := c.storeOf(ctx, p.bucket)
	if err != nil {
		return err
	}
	spec, after, err := p.image.spec(region, dst, facts, "build:"+out.identity)
	if err != nil {
		return err
	}
	// Nothing is uploaded for an image that is there, or under way, already.
	_, found, err := importer.Find(ctx, c.ecs, spec, opts)
	if err != nil {
		return err
	}
	if !found {
		if err := p.preflight(ctx, c, store, spec, after, opts); err != nil {
			return err
		}
		if err := p.send(ctx, store, out, dst, options); err != nil {
			return err
		}
	}
	p.doc.Image, err = importer.Run(ctx, store, c.ecs, spec, after, opts)
	return p.finish(err)
}

// make builds what is to be uploaded. The job is there unless there is an error.
func (p *publisher) make(ctx context.Context, b *base) (j *job, out output, facts importer.ImageFacts, err error) {
	defer func() {
		if err != nil && j != nil {
			err = errors.Join(err, j.Close())
		}
	}()
	format := b.Format
	if p.format != "" {
		if format, err = remaster.ParseFormat(p.format); err != nil {
			return nil, out, facts, errors.Join(usageError{err}, b.Close())
		}
	}
	out = output{format: format, base: b.object}
	var digest string
	if b.object != nil {
		digest = remaster.ObjectDigest(b.object.Info)
		out.fetched = b.object.Fetched
	} else if digest, err = remaster.Digest(ctx, b.Blob); err != nil {
		return nil, out, facts, errors.Join(err, b.Close())
	}
	if p.noBuild {
		j = &job{base: b}
		if format != b.Format {
			return j, out, facts, usagef("--no-build publishes %s as it is: it can't become %s", b.path, format)
		}
		out.blob, out.identity = b.Blob, remaster.BlobIdentity(digest)
		facts, err = b.Facts()
		return j, out, facts, err
	}
	if j, err = p.recipe.plan(ctx, b); err != nil {
		return nil, out, facts, err
	}
	p.remarks(j.Plan)
	if p.doc.Plan, err = j.Document(); err != nil {
		return j, out, facts, err
	}
	if out.identity, err = j.Identity(digest, format); err != nil {
		return j, out, facts, err
	}
	if out.blob, err = j.Output(format); err != nil {
		return j, out, facts, err
	}
	facts, err = j.Facts(format)
	return j, out, facts, err
}

// preflight stops before anything is uploaded if the import can't succeed.
func (p *publisher) preflight(ctx context.Context, c *cloud, store importer.Store, s importer.ImageSpec, after importer.After, o importer.Options) error {
	p.doc.Problems = importer.Preflight(ctx, store, c.ecs, s, after, o)
	for _, x := range p.doc.Problems {
		if x.Fatal {
			err := x.Err
			if err == nil {
				err = errors.New(x.Message)
			}
			return hint.With(fmt.Errorf("before the upload, %s: %w", x.Check, err), x.Remedy)
		}
		p.say("warning: %s: %s", x.Check, x.Message)
	}
	return ctx.Err()
}

// send makes the object, and says how.
func (a *app) send(ctx context.Context, s importer.Store, out output, dst importer.Object, o importer.UploadOptions) (importer.UploadReport, error) {
	bar := a.progress("uploading "+dst.String(), out.blob.Size())
	o.Progress, o.Fetched = bar.add, out.fetched
	r, err := remaster.Send(ctx, s, out.blob, out.base, dst, o)
	bar.end()
	if err != nil {
		return r, fmt.Errorf("%v: %w", dst, err)
	}
	why := ""
	if r.Why != "" {
		why = " (" + r.Why + ")"
	}
	a.say("%v: %s by %s%s: %s sent, %s copied in OSS, %s fetched", dst, size(r.Object.Size), r.Way, why, size(r.Sent), size(r.Copied), size(r.Fetched))
	return r, nil
}

func (p *publisher) send(ctx context.Context, s importer.Store, out output, dst importer.Object, o importer.UploadOptions) error {
	r, err := p.app.send(ctx, s, out, dst, o)
	p.doc.Upload = newUploadDoc(r)
	return err
}

// finish prints the result: whatever was done, also if not all of it was.
func (p *publisher) finish(err error) error {
	if p.asJSON {
		return errors.Join(err, p.json(p.doc))
	}
	p.printReport(p.doc.Image)
	return err
}

// printReport prints the id of the image and what is to be known of it.
func (a *app) printReport(r *importer.Report) {
	for i, reg := range r.Regions {
		if reg.ImageID == "" {
			continue
		}
		if i == 0 {
			a.printf("%s\n", reg.ImageID)
		}
		how := ""
		if reg.Reused {
			how = ", which was there"
		}
		a.say("%s: image %s %q is %s%s", reg.Region, reg.ImageID, reg.Name, strings.ToLower(reg.Status), how)
		if reg.Check == nil {
			continue
		}
		for _, item := range reg.Check.Items {
			a.say("    check %s: %s %s %s", item.Name, item.Value, item.RiskLevel, item.RiskCode)
		}
	}
}
