// A pretend accelerator: its memory is the host's, its arithmetic the CPU's, but like a GPU's its tensors
// may not meet the host's in one operation. It shows on a machine without a GPU whether code keeps its devices apart.
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_cpu_dispatch.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/view_cpu_dispatch.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

namespace {
constexpr auto KIND = c10::DeviceType::PrivateUse1;
const c10::Device HERE(KIND, 0);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device) const override { return HERE; }
  c10::Device getDevice() const override { return HERE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::Stream getNewStream(c10::Device, int) const override { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::Stream exchangeStream(c10::Stream) const override { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override { void* p = c10::alloc_cpu(bytes); return {p, p, &c10::free_cpu, HERE}; }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &memory);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isAvailable() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  at::Device getDeviceFromPtr(void*) const override { return HERE; }
};

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype), format);
}
at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}
at::Tensor seen_from_cpu(const at::Tensor& t) { // the same memory under a CPU tensor
  if (t.device().is_cpu()) return t;
  return at::from_blob(const_cast<void*>(t.const_data_ptr()), t.sizes(), t.strides(), t.options().device(at::kCPU).requires_grad(false));
}
at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) { seen_from_cpu(to).copy_(seen_from_cpu(from)); return to; }
at::Tensor copy_and_resize(const at::Tensor& from, const at::Tensor& to) { to.resize_(from.sizes()); return copy_from(from, to, false); }
const at::Tensor& resize(const at::Tensor& t, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  at::native::resize_impl_cpu_(t.unsafeGetTensorImpl(), size, std::nullopt);
  return t;
}
at::Scalar scalar(const at::Tensor& t) { return seen_from_cpu(t).item(); }
at::Tensor as_strided(const at::Tensor& t, at::IntArrayRef size, at::IntArrayRef stride, std::optional<int64_t> offset) { return at::cpu::as_strided(t, size, stride, offset); }
at::Tensor view(const at::Tensor& t, at::IntArrayRef size) { return at::cpu::view(t, size); }
at::Tensor reshape_alias(const at::Tensor& t, at::IntArrayRef size, at::IntArrayRef stride) { return at::cpu::_reshape_alias(t, size, stride); }

bool may_mix(const std::string& name) { return name == "aten::index" || name == "aten::_index_put_impl_" || name == "aten::index_put" || name == "aten::index_put_"; } // an index may lie on the host
void check(const at::Tensor& t, const std::string& name) {
  TORCH_CHECK(!t.defined() || t.dim() == 0 || t.device() == HERE, "Expected all tensors to be on the same device, but ", name, " found one of shape ", t.sizes(), " on ", t.device(), " among those on the accelerator");
}
void elsewhere(const c10::OperatorHandle& op, torch::jit::Stack* stack) { // every other operation: the devices checked, then the CPU's kernel
  const auto& name = op.schema().name();
  if (!may_mix(name))
    for (const auto& v : torch::jit::last(*stack, op.schema().arguments().size())) {
      if (v.isTensor()) check(v.toTensor(), name);
      else if (v.isTensorList()) for (const at::Tensor& t : v.toTensorVector()) check(t, name);
    }
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &as_strided);
  m.impl("resize_", &resize);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_and_resize);
  m.impl("_local_scalar_dense", &scalar);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&elsewhere>()); }

struct Start { Start() { at::RegisterPrivateUse1HooksInterface(new Hooks()); } } start;
} // namespace
