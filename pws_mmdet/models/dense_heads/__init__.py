from .pws_ssd_head import PWSSSDHead

__all__ = ['PWSSSDHead']
